/* Calls that fail when the fuzzer says so; see faults.h. */
#define TUNSTACK_NO_FAULTS
#include "faults.h"

#include <errno.h>
#include <string.h>

struct faults faults;
static struct sockaddr_storage target; /* of the last connect() that meets itself */
static socklen_t target_length;

static int allocation_fails(void)
{
    return faults.allocation && !--faults.allocation;
}

/* Whether a call fails with the errno at `fault`, which is used up. */
static int call_fails(int *fault)
{
    if (!*fault)
        return 0;
    errno = *fault;
    *fault = 0;
    return 1;
}

void *faulty_malloc(size_t size)
{
    return allocation_fails() ? NULL : malloc(size);
}

void *faulty_calloc(size_t count, size_t size)
{
    return allocation_fails() ? NULL : calloc(count, size);
}

void *faulty_realloc(void *data, size_t size)
{
    return allocation_fails() ? NULL : realloc(data, size);
}

ssize_t faulty_read(int fd, void *data, size_t size)
{
    if (!faults.read)
        return read(fd, data, size);
    errno = faults.read;
    return -1;
}

ssize_t faulty_writev(int fd, const struct iovec *views, int count)
{
    return call_fails(&faults.write) ? -1 : writev(fd, views, count);
}

ssize_t faulty_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return call_fails(&faults.send) ? -1 : sendmsg(fd, message, flags);
}

ssize_t faulty_send(int fd, const void *data, size_t size, int flags)
{
    return call_fails(&faults.send) ? -1 : send(fd, data, size, flags);
}

ssize_t faulty_recv(int fd, void *data, size_t size, int flags)
{
    return call_fails(&faults.receive) ? -1 : recv(fd, data, size, flags);
}

ssize_t faulty_recvmsg(int fd, struct msghdr *message, int flags)
{
    return call_fails(&faults.receive) ? -1 : recvmsg(fd, message, flags);
}

int faulty_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    unsigned most = faults.cut && faults.cut < count ? faults.cut : count;

    faults.cut = 0;
    return call_fails(&faults.send) ? -1 : sendmmsg(fd, messages, most, flags);
}

int faulty_recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    return call_fails(&faults.receive) ? -1 : recvmmsg(fd, messages, count, flags, timeout);
}

int faulty_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int result = poll(fds, count, timeout);

    if (faults.poll && count) {
        faults.poll = 0;
        fds->revents |= POLLERR;
        return 1;
    }
    return result;
}

/* One end of a pair; when there is no room for the other, none. */
int faulty_socket(int family, int type, int protocol)
{
    int ends[2];

    (void)family;
    if (call_fails(&faults.socket) || faults.host_count == FAULTS_HOSTS ||
        socketpair(AF_UNIX, type, protocol, ends))
        return -1;
    faults.hosts[faults.host_count++] = ends[1];
    return ends[0];
}

int faulty_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    (void)fd;
    if (faults.itself) {
        memcpy(&target, address, length);
        target_length = length;
    }
    return call_fails(&faults.connect) ? -1 : 0;
}

int faulty_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
    if (!faults.itself)
        return getsockname(fd, address, length);
    faults.itself = 0;
    memcpy(address, &target, target_length);
    return 0;
}

int faulty_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    int result = getsockopt(fd, level, name, value, length);

    if (faults.error) {
        memcpy(value, &faults.error, sizeof faults.error);
        faults.error = 0;
    }
    return result;
}

int faulty_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    return operation != EPOLL_CTL_DEL && call_fails(&faults.watch) ? -1 : epoll_ctl(epoll_fd, operation, fd, event);
}

int faulty_clock_gettime(clockid_t clock, struct timespec *time)
{
    (void)clock;
    time->tv_sec = (time_t)faults.now;
    time->tv_nsec = (long)((faults.now - (double)time->tv_sec) * 1e9);
    return 0;
}
