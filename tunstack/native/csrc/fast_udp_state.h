/* What the files of the fast path of UDP share; fast_udp.h states the theory of operation. */
#ifndef TUNSTACK_FAST_UDP_STATE_H
#define TUNSTACK_FAST_UDP_STATE_H

#include "fast_udp.h"
#include "fast_wire.h"

#include <netinet/in.h>
#include <sys/socket.h>

#define TS_UDP_HEADER 8
#define TS_UDP_IDENTS 64 /* counters: those of a hash of source and destination share one */
#define TS_UDP_LEFT 64
#define TS_FRAGMENT_HEADER 8
#define TS_PROTOCOL_FRAGMENT 44
#define TS_UDP_PIECE_HEADERS (TS_FAST_VNET + TS_FAST_HEAD + TS_FRAGMENT_HEADER)
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
/* TTL, TOS and the size of a train's datagrams, each an int or less. */
#define TS_UDP_CONTROL (3 * CMSG_SPACE(sizeof(int)))

/* A datagram that waits for the end of the batch: a frame, or fragments that have become one. */
struct ts_collected {
    struct ts_udp_path *path;      /* NULL: dealt with */
    struct ts_assembly *assembly;  /* NULL: a frame, which the next three tell of */
    uint8_t *frame;                /* as it was read */
    uint32_t frame_length;
    uint64_t order;
    const uint8_t *ip, *payload;   /* the beginning of the packet; of an assembly `payload` is NULL */
    uint32_t ip_length, size, segment;
    int hop_limit, traffic_class;
};

enum ts_assembly_state {
    TS_ASSEMBLY_FREE = 0,
    TS_ASSEMBLY_OPEN,
    TS_ASSEMBLY_WHOLE, /* collected */
    TS_ASSEMBLY_LEFT   /* its frames are Python's, until the next call */
};

/* A fragment as it was read, without what follows its packet. */
struct ts_piece {
    uint32_t at, length; /* in the assembly's memory */
    uint64_t order;
};

/* The fragments of one datagram that have come so far, in order. */
struct ts_assembly {
    enum ts_assembly_state state;
    struct ts_udp_path *path; /* NULL: it is carried no longer */
    double deadline;          /* when it is left to Python, which may wait for longer */
    uint64_t key;             /* of family, addresses and identification */
    int traffic_class, hop_limit, dont_fragment;
    uint32_t length;   /* of UDP header and payload */
    uint32_t next;     /* offset of the fragment that is due */
    uint16_t sum;      /* of the pseudo-header and all that has come */
    uint8_t is_summed; /* there is a checksum */
    uint32_t count, used;
    struct ts_piece pieces[TS_UDP_PIECES];
    struct iovec views[TS_UDP_PIECES]; /* of the payload */
    uint8_t quote[TS_UDP_QUOTE];       /* the beginning of the packet, as if it had not been cut */
    uint32_t quote_length;
    uint8_t memory[TS_UDP_PIECES * TS_UDP_PIECE_HEADERS + 65536];
};

struct ts_udp_state {
    struct ts_udp shared; /* first: `ts_fast.udp` points here */
    uint64_t call;
    uint64_t held; /* the call in which a datagram whose path cannot be told went to Python */
    struct ts_udp_path **buckets;
    uint32_t capacity;
    struct ts_udp_socket **by_fd;
    int32_t fd_capacity;
    uint32_t idents[TS_UDP_IDENTS]; /* of the next packet */
    struct ts_collected batch[TS_FAST_FRAMES];
    uint32_t batch_count;
    struct ts_assembly *assemblies[TS_UDP_ASSEMBLIES]; /* NULL: never needed yet */
    uint32_t open_count;
    /* Datagrams of which fragments have gone to Python, and until when all of them do; the oldest are replaced. */
    struct {
        uint64_t key;
        double until;
    } left[TS_UDP_LEFT];
    uint32_t left_next;
    double left_until; /* the latest of them */
    uint8_t *memory, *buffers[TS_UDP_BURST];
};

static inline struct ts_udp_state *ts_udp_state_of(const struct ts_fast *fast)
{
    return (struct ts_udp_state *)(void *)fast->udp;
}

/* The path of this key; NULL: there is none. */
struct ts_udp_path *ts_udp_find(const struct ts_fast *fast, const uint8_t *addresses, int family,
                                const uint8_t *ports);
/* A datagram has passed; `sent`: up, to `path`. */
void ts_udp_use_socket(struct ts_fast *fast, struct ts_udp_socket *socket);
void ts_udp_use_path(struct ts_fast *fast, struct ts_udp_path *path, const struct ts_collected *sent);

/* What became of a frame that may be a fragment. */
enum ts_fragment { TS_FRAGMENT_NOT = 0, TS_FRAGMENT_KEPT, TS_FRAGMENT_LAST };

/* A frame of the device that is no whole datagram. TS_FRAGMENT_LAST: `collected` is filled in. */
enum ts_fragment ts_assembly_take(struct ts_fast *fast, const uint8_t *frame, uint32_t length,
                                  struct ts_collected *collected);
/* Leave its fragments to Python. */
void ts_assembly_leave(struct ts_fast *fast, struct ts_assembly *assembly);
/* `path` is carried no longer. */
void ts_assembly_orphan(struct ts_fast *fast, const struct ts_udp_path *path);
/* Python has dealt with what was left to it. */
void ts_assembly_reset(struct ts_fast *fast);
void ts_assembly_free(struct ts_fast *fast);

#endif
