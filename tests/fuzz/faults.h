/* Included in front of the C side: calls that the fuzzer lets fail, and the clock. */
#ifndef TUNSTACK_FAULTS_H
#define TUNSTACK_FAULTS_H

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FAULTS_HOSTS 64

struct faults {
    uint32_t allocation;      /* the how manieth from now fails; 0: none */
    int read;                 /* errno of all reads; 0: they work */
    int write, send, receive; /* errno of the next one */
    unsigned cut;             /* messages that the next sendmmsg takes; 0: all */
    int poll;                 /* whether the next one finds an error */
    double now;               /* of the monotonic clock */
    int socket, watch;        /* errno of the next socket() and epoll_ctl() */
    int connect;              /* and of the next connect(); EINPROGRESS: it has worked a little later */
    int error;                /* what the socket says of it then */
    int itself;               /* whether the next one has met itself */
    int hosts[FAULTS_HOSTS];  /* the other ends of the sockets that were made; they are their owner's */
    unsigned host_count;
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
int faulty_socket(int family, int type, int protocol);
int faulty_connect(int fd, const struct sockaddr *address, socklen_t length);
int faulty_getsockname(int fd, struct sockaddr *address, socklen_t *length);
int faulty_getsockopt(int fd, int level, int name, void *value, socklen_t *length);
int faulty_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);
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
#define socket(...) faulty_socket(__VA_ARGS__)
#define connect(...) faulty_connect(__VA_ARGS__)
#define getsockname(...) faulty_getsockname(__VA_ARGS__)
#define getsockopt(...) faulty_getsockopt(__VA_ARGS__)
#define epoll_ctl(...) faulty_epoll_ctl(__VA_ARGS__)
#define clock_gettime faulty_clock_gettime
#endif

#endif
