/* The world of the fuzz target of UDP: what udp.c does to it, and what udp_checks.c holds it to. */
#ifndef TUNSTACK_FUZZ_UDP_H
#define TUNSTACK_FUZZ_UDP_H

#include "fast_udp.h"
#include "fuzz.h"

#include <stdbool.h>
#include <sys/socket.h>

#define SLOTS 6
#define HOSTS 4         /* of each family; a path leads to each but the last */
#define SILENT 2        /* nobody listens at this one */
#define STRANGER 3      /* sends without being sent to */
#define NUMBERED 8      /* bytes of the smallest datagram that carries its number */
#define HOST_PORT 1000  /* as the guest knows the first host */

/* One mapping: the guest's port 40000 + its index, and a socket of the loopback. */
struct slot {
    struct ts_udp_socket *socket; /* NULL: none */
    struct ts_udp_path *paths[HOSTS];
    int family, fd;
    uint16_t port;               /* of the socket */
    uint32_t last_up, last_down; /* numbers of the last datagrams that arrived */
};

struct world {
    struct ts_fast *fast;
    int guest; /* the other end of the device */
    double now;
    uint32_t number; /* of the next datagram, whoever sends it */
    uint32_t before; /* number before that of the first */
    struct slot slots[SLOTS];
};

/* The hosts, of IPv4 and of IPv6: sockets and ports, the same for all inputs. */
extern int hosts[2][HOSTS];
extern uint16_t host_ports[2][HOSTS];

/* Datagrams numbered from `number` on, in a train if `segment` is not 0. */
void fill_numbered(uint8_t *at, uint32_t number, uint32_t size, uint32_t segment);

/* After each operation. */
void check_world(const struct world *world);
/* After each call of the C side, before what it has left for Python is dealt with. */
void check_call(struct world *world);
/* Frames that are left for Python. */
void check_frames(const struct world *world);
/* A path has been given the key of another. */
bool is_taken(const struct world *world, const struct ts_udp_path *path);

#endif
