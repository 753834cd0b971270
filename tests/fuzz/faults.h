/* Included in front of the C side: calls that the fuzzer lets fail, and the clock. */
#ifndef TUNSTACK_FAULTS_H
#define TUNSTACK_FAULTS_H

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct faults {
    uint32_t allocation;      /* the how manieth from now fails; 0: none */
    int read;                 /* errno of all reads; 0: they work */
    int write, send, receive; /* errno of the next one */
    unsigned cut;             /* messages that the next sendmmsg takes; 0: all */
    int poll;                 /* whether the next one finds an error */
    double now;               /* of the monotonic clock */
};
extern struct faults faults;

void *faulty_malloc(size_t size);
void *faulty_calloc(size_t count, size_t size);
void *faulty_realloc(void *data, size_t size);
ssize_t faulty_read(int fd, void *data, size_t size);
ssize_t faulty_writev(int fd, const struct iovec *views, int count);
ssize_t faulty_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t faulty_send(int fd, const void *data, size_t size, int flags);
ssize_t faulty_recv(int fd, void *data, size_t size, int flags);
ssize_t faulty_recvmsg(int fd, struct msghdr *message, int flags);
int faulty_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int faulty_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout);
int faulty_poll(struct pollfd *fds, nfds_t count, int timeout);
int faulty_clock_gettime(clockid_t clock, struct timespec *time);

#ifndef TUNSTACK_NO_FAULTS
#define malloc faulty_malloc
#define calloc faulty_calloc
#define realloc faulty_realloc
#define read faulty_read
#define writev faulty_writev
#define send faulty_send
#define recv faulty_recv
#define sendmsg faulty_sendmsg
#define recvmsg faulty_recvmsg
#define sendmmsg faulty_sendmmsg
#define recvmmsg faulty_recvmmsg
#define poll(...) faulty_poll(__VA_ARGS__)
#define clock_gettime faulty_clock_gettime
#endif

#endif
