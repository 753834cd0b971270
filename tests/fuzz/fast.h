/* The world of the fuzz target of the fast path: what fast.c does to it, and what fast_checks.c holds it to. */
#ifndef TUNSTACK_FUZZ_FAST_H
#define TUNSTACK_FUZZ_FAST_H

#include "fastpath.h"
#include "fuzz.h"

#define SLOTS 12

/* One flow, its socket's two ends, and what is known of its streams. */
struct slot {
    struct ts_flow *flow; /* NULL: none */
    uint32_t id;
    int ours, host;      /* host: -1 when closed */
    uint32_t write_seq;  /* of the next byte that the host writes */
    uint32_t read_seq;   /* of the next byte that the host reads */
    uint32_t guest_seq;  /* of the next byte that the guest sends */
    uint32_t seen_adv;   /* rcv_adv at the last check */
    uint32_t most_sent;  /* records that it may have */
    struct ts_flow frozen; /* as it was when it was returned, if `is_frozen` */
    uint8_t is_frozen;
    uint8_t *out, *in; /* its queues then */
    uint32_t in_length;
};

struct world {
    struct ts_fast *fast;
    int guest; /* the other end of the device */
    double now;
    int64_t send_limit, keep_limit, receive_limit; /* what the budgets are when no flow is there */
    struct slot slots[SLOTS];
};

/* After each operation. */
void check_world(struct world *world);
/* After each call of the C side besides: what it has frozen, and what it had frozen before. */
void check_call(struct world *world);
/* A frame that the C side has sent. */
void check_sent(const struct world *world, const uint8_t *data, size_t length);
/* The queues of a flow, in buffers to be freed. */
void copy_queues(const struct ts_flow *flow, uint8_t **out, uint8_t **in);
void check_queues(const struct slot *slot, const uint8_t *out, const uint8_t *in);

#endif
