/*
 * One direction of a shaped link: loss, a rate with its queue, and a delay.
 *
 * The theory of operation is that of tunstack.link.shaping.stage, the reference is `Pipeline` there: on the same
 * calls both decide alike, to the bit. Python fills a pipeline in (`lend`) and reads it back (`restore`); in
 * between only this code writes it. Randomness is Python's own Mersenne Twister, which goes to and fro with it.
 *
 * Bounds: what stages hold is within `memory_limit`; what has passed them waits outside of that until it is popped.
 */
#ifndef TUNSTACK_PIPELINE_H
#define TUNSTACK_PIPELINE_H

#include <stddef.h>
#include <stdint.h>

#define TS_RANDOM_WORDS 624
#define TS_PIPELINE_GAP 10 /* TS_FAST_VNET: bytes 0 in front of each packet */
#define TS_BUCKETS 1024    /* queues of FQ-CoDel (RFC 8290 5.2.5) */
#define TS_NO_BUCKET -1

/* The stages, in the order in which packets pass them. */
enum ts_stage_kind { TS_STAGE_LOSS, TS_STAGE_RATE, TS_STAGE_DELAY, TS_STAGES };

/* Why a stage drops. */
enum ts_shape_drop { TS_SHAPE_LOSS, TS_SHAPE_QUEUE_FULL, TS_SHAPE_MEMORY, TS_SHAPE_DROPS };

/* What decides on the packets that wait for the rate. */
enum ts_discipline { TS_DROP_TAIL, TS_CODEL, TS_FQ_CODEL };

/* The flows of FQ-CoDel that have something to send take turns, the new ones first. */
enum ts_turn { TS_NEW_FLOWS, TS_OLD_FLOWS, TS_TURNS, TS_NO_TURN = TS_TURNS };

/* Where packets are. */
enum ts_place { TS_AT_RATE, TS_AT_QUEUE, TS_AT_DELAY, TS_AT_END, TS_PLACES };

struct ts_packet {
    struct ts_packet *next;
    double since; /* when it came into the stage */
    double due;   /* when it leaves, where that is known */
    uint64_t number;
    uint32_t length;
    uint8_t data[]; /* TS_PIPELINE_GAP bytes 0, and `length` bytes */
};

struct ts_line {
    struct ts_packet *first, *last;
    uint64_t count, bytes;
};

struct ts_random {
    uint32_t words[TS_RANDOM_WORDS];
    uint32_t index;
};

/* The state of CoDel (RFC 8289) for one queue; `above_at` is HUGE_VAL for never. */
struct ts_codel {
    double above_at, next_drop;
    int64_t count, last_count;
    uint64_t marked;
    uint8_t is_dropping;
};

/* One queue of FQ-CoDel. */
struct ts_bucket {
    struct ts_line line;
    struct ts_codel codel;
    int64_t credit;
    int32_t next; /* in its turn, or TS_NO_BUCKET */
    uint8_t turn;
    uint8_t is_made;
};

/* What a stage has done; `dropped` since Python last looked. */
struct ts_stage {
    uint64_t received, sent, dropped[TS_SHAPE_DROPS];
    double waited, longest;
};

struct ts_pipeline {
    /* set by Python */
    uint8_t has_loss, has_rate, has_delay, keep_order;
    double loss;
    struct ts_random loss_random;
    double seconds_per_byte, burst, free; /* `burst` in seconds */
    int64_t overhead;
    uint32_t cell, cell_overhead;
    uint64_t queue_packets, queue_bytes; /* at the most */
    double target, interval;
    uint32_t hash_seed;
    uint8_t by_guest; /* there is a queue for each guest */
    uint8_t discipline, ecn, l2;
    double begun, done;                  /* of the packet that is being sent */
    double delay, jitter, latest;
    struct ts_random delay_random;
    uint64_t memory_limit, memory_used, memory_overhead;

    struct ts_stage stages[TS_STAGES];
    uint64_t dropped; /* of all stages, since Python last looked */

    /* inside */
    struct ts_packet *sending;
    struct ts_line queue, passed; /* `queue`: of FQ-CoDel only the sums */
    struct ts_codel codel;
    struct ts_bucket *buckets;
    uint16_t made[TS_BUCKETS]; /* the buckets that were used, in the order of their first use */
    uint32_t made_count;
    int32_t first_turn[TS_TURNS], last_turn[TS_TURNS];
    struct ts_packet **held; /* a heap by `due` and `number` */
    uint64_t held_bytes, number;
    uint32_t held_count, held_capacity;
    double told; /* the latest time that a call has brought */
};

/* Without stages; NULL without memory. */
struct ts_pipeline *ts_pipeline_new(void);
/* And all that is inside. */
void ts_pipeline_free(struct ts_pipeline *pipeline);
/* Which discipline its queue has, before anything is in it; 0, or -1 without memory. */
int ts_pipeline_set_queue(struct ts_pipeline *pipeline, int discipline);
/* A bucket of FQ-CoDel that is used from now on, to be filled in; it stands last in that turn, TS_NO_TURN: in none. */
struct ts_bucket *ts_pipeline_add_bucket(struct ts_pipeline *pipeline, uint32_t bucket, int turn);
/* Send a copy of `length` bytes. */
void ts_pipeline_send(struct ts_pipeline *pipeline, const uint8_t *data, uint32_t length, double at);
/* The next packet that has left at `now` or before, its time in `due`; NULL: none. To be freed. */
struct ts_packet *ts_pipeline_pop(struct ts_pipeline *pipeline, double now);
/* When to pop; HUGE_VAL: there is nothing inside. */
double ts_pipeline_deadline(const struct ts_pipeline *pipeline);
/* Put a packet back where it was, behind those that are there; 0, or -1 without memory. No budget is asked. */
int ts_pipeline_put(struct ts_pipeline *pipeline, int place, const uint8_t *data, uint32_t length, double since,
                    double due);
/* The first packet of a place, which it leaves; NULL: none. To be freed. */
struct ts_packet *ts_pipeline_take(struct ts_pipeline *pipeline, int place);
void ts_packet_free(struct ts_packet *packet);

/* Between the files. */

/* Room for `length` bytes; NULL without memory. */
struct ts_packet *ts_packet_new(uint32_t length);
/* As `ts_pipeline_send` of `packet`, which is the pipeline's then. */
void ts_pipeline_push(struct ts_pipeline *pipeline, struct ts_packet *packet, double at);
/* There was no memory for a packet: count it. */
void ts_pipeline_lost(struct ts_pipeline *pipeline);
/* The queue drops `packet`. */
void ts_pipeline_drop_waiting(struct ts_pipeline *pipeline, struct ts_packet *packet);

void ts_line_append(struct ts_line *line, struct ts_packet *packet);
struct ts_packet *ts_line_take(struct ts_line *line);

/* The queue before the rate: a packet comes, and is maybe dropped; the next one leaves; one is put back or taken. */
void ts_queue_push(struct ts_pipeline *pipeline, struct ts_packet *packet);
struct ts_packet *ts_queue_pop(struct ts_pipeline *pipeline, double at);
void ts_queue_put(struct ts_pipeline *pipeline, struct ts_packet *packet);
struct ts_packet *ts_queue_take(struct ts_pipeline *pipeline);

#endif
