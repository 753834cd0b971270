/*
 * The queue disciplines of a rate: drop-tail, CoDel (RFC 8289) and FQ-CoDel (RFC 8290).
 *
 * The theory of operation is that of tunstack.link.shaping.codel and fq_codel; pipeline.h says what this is held to.
 */
#include "pipeline.h"
#include "wire.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FEW_BYTES 1514 /* a queue of at most one packet of full size is no queue (RFC 8289 4.2) */
#define RECENT 16      /* intervals within which the rate of drops of the last time is taken up again */
#define QUANTUM 1514   /* bytes of a turn (RFC 8290 5.2.4) */
#define BATCH 64       /* packets that are dropped at once at the most, when all is full (RFC 8290 4.1.2) */

static int is_full(const struct ts_pipeline *pipeline, uint64_t packets, uint64_t bytes)
{
    return packets > pipeline->queue_packets || bytes > pipeline->queue_bytes;
}

/* CoDel. */

/* Congestion Experienced (RFC 3168 5); 0: its sender knows no ECN. */
static int mark(const struct ts_pipeline *pipeline, struct ts_codel *codel, struct ts_packet *packet)
{
    uint32_t start = pipeline->l2 ? TS_ETHERNET : 0, header, total = 0, i;
    uint8_t *ip = packet->data + TS_PIPELINE_GAP + start;

    if (!pipeline->ecn || packet->length < start + 20)
        return 0;
    if (ip[0] >> 4 == 4 && ip[1] & 3) {
        header = (ip[0] & 15u) * 4;
        if (header > packet->length - start)
            header = packet->length - start;
        ip[1] |= 3;
        ts_put16(ip + 10, 0);
        /* One that is cut short ends within a word: it is summed from its end. */
        for (i = 0; i < header; i++)
            total += (header - i) & 1 ? ip[i] : (uint32_t)ip[i] << 8;
        total %= 0xffff;
        ts_put16(ip + 10, total ? 0xffff - total : 0);
    } else if (ip[0] >> 4 == 6 && ip[1] & 0x30) {
        ip[1] |= 0x30;
    } else {
        return 0;
    }
    codel->marked++;
    return 1;
}

/* The next packet of `line`, and whether packets have waited too long for an interval. */
static struct ts_packet *take(struct ts_pipeline *pipeline, struct ts_line *line, struct ts_codel *codel, double at,
                              int *is_late)
{
    struct ts_packet *packet = ts_line_take(line);

    *is_late = 0;
    if (!packet || at - packet->since < pipeline->target || line->bytes <= FEW_BYTES)
        codel->above_at = HUGE_VAL;
    else if (codel->above_at == HUGE_VAL)
        codel->above_at = at + pipeline->interval;
    else
        *is_late = at >= codel->above_at;
    return packet;
}

static double law(const struct ts_pipeline *pipeline, const struct ts_codel *codel, double time)
{
    return time + pipeline->interval / sqrt((double)codel->count);
}

/* Of FQ-CoDel, `pipeline->queue` has the sums; `line` itself otherwise. */
static void drop(struct ts_pipeline *pipeline, const struct ts_line *line, struct ts_packet *packet)
{
    if (line != &pipeline->queue) {
        pipeline->queue.count--;
        pipeline->queue.bytes -= packet->length;
    }
    ts_pipeline_drop_waiting(pipeline, packet);
}

static struct ts_packet *codel_pop(struct ts_pipeline *pipeline, struct ts_line *line, struct ts_codel *codel,
                                   double at)
{
    int is_late;
    struct ts_packet *packet = take(pipeline, line, codel, at, &is_late);
    int64_t since;

    if (codel->is_dropping) {
        if (!is_late)
            codel->is_dropping = 0;
        while (packet && codel->is_dropping && at >= codel->next_drop) {
            codel->count++;
            if (mark(pipeline, codel, packet)) {
                codel->next_drop = law(pipeline, codel, codel->next_drop);
                return packet;
            }
            drop(pipeline, line, packet);
            packet = take(pipeline, line, codel, at, &is_late);
            if (is_late)
                codel->next_drop = law(pipeline, codel, codel->next_drop);
            else
                codel->is_dropping = 0;
        }
    } else if (packet && is_late) {
        if (!mark(pipeline, codel, packet)) {
            drop(pipeline, line, packet);
            packet = take(pipeline, line, codel, at, &is_late);
        }
        codel->is_dropping = 1;
        since = codel->count - codel->last_count;
        codel->count = since > 1 && at - codel->next_drop < RECENT * pipeline->interval ? since : 1;
        codel->next_drop = law(pipeline, codel, at);
        codel->last_count = codel->count;
    }
    return packet;
}

/* FQ-CoDel. */

/* The CRC of zlib, as Python's `crc32(data, crc)`. */
static uint32_t crc32(uint32_t crc, const uint8_t *data, uint32_t length)
{
    /* Of half a byte. */
    static const uint32_t table[] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    uint32_t i;

    crc = ~crc;
    for (i = 0; i < length; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* Which queue is that of `packet`: by the MACs, or by protocol, addresses and, if it shows them, ports. */
static uint32_t find_bucket(const struct ts_pipeline *pipeline, const struct ts_packet *packet)
{
    static const uint8_t not_ip[] = {'n', 'o', 't', ' ', 'I', 'P'};
    uint32_t start = pipeline->l2 ? TS_ETHERNET : 0, addresses, transport, ports, crc = pipeline->hash_seed;
    const uint8_t *ip = packet->data + TS_PIPELINE_GAP + start, *protocol;
    int version = packet->length < start + 20 ? 0 : ip[0] >> 4, is_fragment = 0;

    if (pipeline->by_guest)
        return crc32(crc, packet->data + TS_PIPELINE_GAP, start ? packet->length < 12 ? packet->length : 12 : 0) %
               TS_BUCKETS;
    if (version == 4) {
        protocol = ip + 9;
        addresses = 12;
        transport = (ip[0] & 15u) * 4;
        is_fragment = (ts_get16(ip + 6) & 0x3fff) != 0;
    } else if (version == 6 && packet->length >= start + 40) {
        protocol = ip + 6;
        addresses = 8;
        transport = 40;
    } else {
        return crc32(crc, not_ip, sizeof not_ip) % TS_BUCKETS;
    }
    crc = crc32(crc, protocol, 1);
    crc = crc32(crc, ip + addresses, version == 4 ? 8 : 32);
    if ((*protocol == TS_PROTOCOL_TCP || *protocol == TS_PROTOCOL_UDP) && !is_fragment &&
        packet->length > start + transport) {
        ports = packet->length - start - transport;
        crc = crc32(crc, ip + transport, ports < 4 ? ports : 4);
    }
    return crc % TS_BUCKETS;
}

static void add_turn(struct ts_pipeline *pipeline, int32_t bucket, int turn)
{
    int32_t last = pipeline->last_turn[turn];

    pipeline->buckets[bucket].next = TS_NO_BUCKET;
    pipeline->buckets[bucket].turn = (uint8_t)turn;
    *(last == TS_NO_BUCKET ? &pipeline->first_turn[turn] : &pipeline->buckets[last].next) = bucket;
    pipeline->last_turn[turn] = bucket;
}

static void end_turn(struct ts_pipeline *pipeline, int turn)
{
    struct ts_bucket *bucket = &pipeline->buckets[pipeline->first_turn[turn]];

    pipeline->first_turn[turn] = bucket->next;
    if (bucket->next == TS_NO_BUCKET)
        pipeline->last_turn[turn] = TS_NO_BUCKET;
    bucket->turn = TS_NO_TURN;
}

static struct ts_bucket *make(struct ts_pipeline *pipeline, uint32_t number)
{
    struct ts_bucket *bucket = &pipeline->buckets[number];

    if (!bucket->is_made) {
        bucket->is_made = 1;
        bucket->turn = TS_NO_TURN;
        bucket->next = TS_NO_BUCKET;
        bucket->credit = QUANTUM;
        bucket->codel.above_at = HUGE_VAL;
        pipeline->made[pipeline->made_count++] = (uint16_t)number;
    }
    return bucket;
}

/* Drop some of the longest queue, the first of those that are; 0: nothing waits. */
static int make_room(struct ts_pipeline *pipeline)
{
    struct ts_bucket *longest = NULL;
    uint64_t count;
    uint32_t i;

    for (i = 0; i < pipeline->made_count; i++) {
        struct ts_bucket *bucket = &pipeline->buckets[pipeline->made[i]];

        if (!longest || bucket->line.bytes > longest->line.bytes)
            longest = bucket;
    }
    count = longest ? (longest->line.count + 1) / 2 : 0;
    for (i = 0; i < count && i < BATCH; i++)
        drop(pipeline, &longest->line, ts_line_take(&longest->line));
    return count != 0;
}

static void fq_put(struct ts_pipeline *pipeline, struct ts_bucket *bucket, struct ts_packet *packet)
{
    pipeline->queue.count++;
    pipeline->queue.bytes += packet->length;
    ts_line_append(&bucket->line, packet);
}

static void fq_push(struct ts_pipeline *pipeline, struct ts_packet *packet)
{
    uint32_t number = find_bucket(pipeline, packet);
    struct ts_bucket *bucket = make(pipeline, number);

    if (bucket->turn == TS_NO_TURN) {
        bucket->credit = QUANTUM;
        add_turn(pipeline, (int32_t)number, TS_NEW_FLOWS);
    }
    fq_put(pipeline, bucket, packet);
    while (is_full(pipeline, pipeline->queue.count, pipeline->queue.bytes) && make_room(pipeline))
        ;
}

static struct ts_packet *fq_pop(struct ts_pipeline *pipeline, double at)
{
    for (;;) {
        int turn = pipeline->first_turn[TS_NEW_FLOWS] != TS_NO_BUCKET ? TS_NEW_FLOWS : TS_OLD_FLOWS;
        int32_t number = pipeline->first_turn[turn];
        struct ts_bucket *bucket;
        struct ts_packet *packet;

        if (number == TS_NO_BUCKET)
            return NULL;
        bucket = &pipeline->buckets[number];
        if (bucket->credit <= 0) {
            bucket->credit += QUANTUM;
            end_turn(pipeline, turn);
            add_turn(pipeline, number, TS_OLD_FLOWS);
            continue;
        }
        packet = codel_pop(pipeline, &bucket->line, &bucket->codel, at);
        if (!packet) {
            end_turn(pipeline, turn);
            /* Lest it is new again at once. */
            if (turn == TS_NEW_FLOWS && pipeline->first_turn[TS_OLD_FLOWS] != TS_NO_BUCKET)
                add_turn(pipeline, number, TS_OLD_FLOWS);
            continue;
        }
        bucket->credit -= packet->length;
        pipeline->queue.count--;
        pipeline->queue.bytes -= packet->length;
        return packet;
    }
}

/* All of them. */

int ts_pipeline_set_queue(struct ts_pipeline *pipeline, int discipline)
{
    int turn;

    pipeline->codel.above_at = HUGE_VAL;
    if (discipline == TS_FQ_CODEL && !pipeline->buckets) {
        pipeline->buckets = calloc(TS_BUCKETS, sizeof *pipeline->buckets);
        if (!pipeline->buckets)
            return -1;
        for (turn = 0; turn < TS_TURNS; turn++)
            pipeline->first_turn[turn] = pipeline->last_turn[turn] = TS_NO_BUCKET;
    }
    pipeline->discipline = (uint8_t)discipline;
    return 0;
}

struct ts_bucket *ts_pipeline_add_bucket(struct ts_pipeline *pipeline, uint32_t bucket, int turn)
{
    struct ts_bucket *made = make(pipeline, bucket % TS_BUCKETS);

    if (turn != TS_NO_TURN && made->turn == TS_NO_TURN)
        add_turn(pipeline, (int32_t)(bucket % TS_BUCKETS), turn);
    return made;
}

void ts_queue_push(struct ts_pipeline *pipeline, struct ts_packet *packet)
{
    if (pipeline->discipline == TS_FQ_CODEL)
        fq_push(pipeline, packet);
    else if (pipeline->queue.count >= pipeline->queue_packets ||
             is_full(pipeline, 0, pipeline->queue.bytes + packet->length))
        ts_pipeline_drop_waiting(pipeline, packet);
    else
        ts_line_append(&pipeline->queue, packet);
}

struct ts_packet *ts_queue_pop(struct ts_pipeline *pipeline, double at)
{
    switch (pipeline->discipline) {
    case TS_FQ_CODEL:
        return fq_pop(pipeline, at);
    case TS_CODEL:
        return codel_pop(pipeline, &pipeline->queue, &pipeline->codel, at);
    default:
        return ts_line_take(&pipeline->queue);
    }
}

void ts_queue_put(struct ts_pipeline *pipeline, struct ts_packet *packet)
{
    if (pipeline->discipline == TS_FQ_CODEL)
        fq_put(pipeline, make(pipeline, find_bucket(pipeline, packet)), packet);
    else
        ts_line_append(&pipeline->queue, packet);
}

struct ts_packet *ts_queue_take(struct ts_pipeline *pipeline)
{
    struct ts_packet *packet;
    uint32_t i;

    if (pipeline->discipline != TS_FQ_CODEL)
        return ts_line_take(&pipeline->queue);
    for (i = 0; i < pipeline->made_count; i++) {
        packet = ts_line_take(&pipeline->buckets[pipeline->made[i]].line);
        if (packet) {
            pipeline->queue.count--;
            pipeline->queue.bytes -= packet->length;
            return packet;
        }
    }
    return NULL;
}
