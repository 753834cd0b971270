/* Doors: which there are, what Python has a claim to, and how the host gets there; see fast_brief.h. */
#define _GNU_SOURCE
#include "fast_brief.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct ts_door *ts_door_new(void)
{
    return calloc(1, sizeof(struct ts_door));
}

/* The first of the places where a door may be. */
static struct ts_door **set_of(const struct ts_fast *fast, int family, const uint8_t *addresses,
                               const uint8_t *ports)
{
    uint8_t to[4] = {0, 0, ports[2], ports[3]};
    uint64_t hash = ts_fast_hash(fast, addresses, family, to);

    return fast->briefs->doors + hash % (TS_BRIEF_DOORS / TS_BRIEF_WAYS) * TS_BRIEF_WAYS;
}

static int leads_to(const struct ts_door *door, int family, const uint8_t *addresses, const uint8_t *ports)
{
    return door && door->model.family == family && !memcmp(door->model.ports + 2, ports + 2, 2) &&
           !memcmp(door->model.address, addresses, family == 4 ? 8 : 32);
}

struct ts_door *ts_door_find(const struct ts_fast *fast, int family, const uint8_t *addresses,
                             const uint8_t *ports)
{
    struct ts_door **set;
    int i;

    if (!fast->briefs->door_count)
        return NULL;
    set = set_of(fast, family, addresses, ports);
    for (i = 0; i < TS_BRIEF_WAYS; i++)
        if (leads_to(set[i], family, addresses, ports))
            return set[i];
    return NULL;
}

int ts_door_open(struct ts_fast *fast, struct ts_door *door)
{
    const struct ts_flow *model = &door->model;
    struct ts_door **set, *former;
    uint32_t way = 0;

    if (!ts_flow_is_sound(model) || door->target_length > sizeof door->target) {
        free(door);
        return -1;
    }
    former = ts_door_find(fast, model->family, model->address, model->ports);
    if (former)
        ts_door_close(fast, former);
    set = set_of(fast, model->family, model->address, model->ports);
    while (way < TS_BRIEF_WAYS && set[way])
        way++;
    if (way == TS_BRIEF_WAYS) {
        way = fast->briefs->turn++ % TS_BRIEF_WAYS;
        ts_door_close(fast, set[way]);
    }
    set[way] = door;
    fast->briefs->door_count++;
    return 0;
}

void ts_door_close(struct ts_fast *fast, struct ts_door *door)
{
    const struct ts_flow *model = &door->model;
    struct ts_door **set = set_of(fast, model->family, model->address, model->ports);

    while (*set != door)
        set++;
    *set = NULL;
    fast->briefs->door_count--;
    free(door);
}

static uint16_t *claim_of(const struct ts_fast *fast, uint64_t hash)
{
    return &fast->briefs->claims[hash >> 48]; /* other bits than those that flows are found by */
}

int ts_brief_is_claimed(const struct ts_fast *fast, int family, const uint8_t *addresses, const uint8_t *ports)
{
    return *claim_of(fast, ts_fast_hash(fast, addresses, family, ports)) != 0;
}

void ts_brief_claim(struct ts_fast *fast, int family, const uint8_t *addresses, const uint8_t *ports, int by)
{
    uint16_t *claim = claim_of(fast, ts_fast_hash(fast, addresses, family, ports));

    if (*claim != UINT16_MAX) /* else nobody knows any more how many there are */
        *claim = (uint16_t)(*claim + by);
}

int ts_door_meets_itself(int fd, const struct ts_door *door)
{
    struct sockaddr_in6 name;
    socklen_t length = sizeof name;

    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &length) || memcmp(&name, door->target, 4))
        return 0; /* another family or port */
    return door->model.family == 4 ? !memcmp((uint8_t *)&name + 4, door->target + 4, 4)
                                   : !memcmp((uint8_t *)&name + 8, door->target + 8, 16);
}

void ts_door_linger_zero(int fd)
{
    struct linger linger = {1, 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

int ts_door_dial(const struct ts_door *door, int *is_connected)
{
    int family = door->model.family == 4 ? AF_INET : AF_INET6, one = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    *is_connected = !connect(fd, (const struct sockaddr *)door->target, door->target_length);
    if (*is_connected && ts_door_meets_itself(fd, door)) {
        ts_door_linger_zero(fd);
    } else if (*is_connected || errno == EINPROGRESS) {
        return fd;
    }
    close(fd);
    return -1;
}
