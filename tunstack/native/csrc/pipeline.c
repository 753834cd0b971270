/* The stages of a shaped link; pipeline.h says what they are held to. */
#include "pipeline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHIFTED 397 /* of the Mersenne Twister MT19937 */
#define FIRST_CAPACITY 64

struct ts_packet *ts_packet_new(uint32_t length)
{
    struct ts_packet *packet = malloc(sizeof *packet + TS_PIPELINE_GAP + length);

    if (!packet)
        return NULL;
    packet->next = NULL;
    packet->since = packet->due = 0;
    packet->number = 0;
    packet->length = length;
    memset(packet->data, 0, TS_PIPELINE_GAP);
    return packet;
}

void ts_packet_free(struct ts_packet *packet)
{
    free(packet);
}

struct ts_pipeline *ts_pipeline_new(void)
{
    return calloc(1, sizeof(struct ts_pipeline));
}

void ts_pipeline_free(struct ts_pipeline *pipeline)
{
    struct ts_packet *packet;
    int place;

    if (!pipeline)
        return;
    for (place = 0; place < TS_PLACES; place++)
        while ((packet = ts_pipeline_take(pipeline, place)))
            free(packet);
    free(pipeline->held);
    free(pipeline->buckets);
    free(pipeline);
}

/* Lines. */

void ts_line_append(struct ts_line *line, struct ts_packet *packet)
{
    packet->next = NULL;
    *(line->last ? &line->last->next : &line->first) = packet;
    line->last = packet;
    line->count++;
    line->bytes += packet->length;
}

struct ts_packet *ts_line_take(struct ts_line *line)
{
    struct ts_packet *packet = line->first;

    if (!packet)
        return NULL;
    line->first = packet->next;
    if (!line->first)
        line->last = NULL;
    packet->next = NULL;
    line->count--;
    line->bytes -= packet->length;
    return packet;
}

/* The heap of packets that are delayed. */

static int is_before(const struct ts_packet *a, const struct ts_packet *b)
{
    return a->due != b->due ? a->due < b->due : a->number < b->number;
}

/* Hold `packet`; -1 without memory. */
static int hold(struct ts_pipeline *pipeline, struct ts_packet *packet)
{
    uint32_t at = pipeline->held_count, capacity;
    struct ts_packet **held;

    if (at == pipeline->held_capacity) {
        capacity = at ? 2 * at : FIRST_CAPACITY;
        held = realloc(pipeline->held, capacity * sizeof *held);
        if (!held)
            return -1;
        pipeline->held = held;
        pipeline->held_capacity = capacity;
    }
    held = pipeline->held;
    packet->number = ++pipeline->number;
    for (; at && is_before(packet, held[(at - 1) / 2]); at = (at - 1) / 2)
        held[at] = held[(at - 1) / 2];
    held[at] = packet;
    pipeline->held_count++;
    pipeline->held_bytes += packet->length;
    return 0;
}

static struct ts_packet *take_soonest(struct ts_pipeline *pipeline)
{
    struct ts_packet **held = pipeline->held, *packet, *last;
    uint32_t at = 0, child, count;

    if (!pipeline->held_count)
        return NULL;
    packet = held[0];
    count = --pipeline->held_count;
    last = held[count];
    while ((child = 2 * at + 1) < count) {
        if (child + 1 < count && is_before(held[child + 1], held[child]))
            child++;
        if (!is_before(held[child], last))
            break;
        held[at] = held[child];
        at = child;
    }
    held[at] = last;
    pipeline->held_bytes -= packet->length;
    return packet;
}

/* Random numbers: MT19937 as Python's `random.Random` has it, 53 bits of two words. */

static uint32_t mixed(uint32_t high, uint32_t low, uint32_t shifted)
{
    uint32_t word = (high & 0x80000000u) | (low & 0x7fffffffu);

    return shifted ^ word >> 1 ^ (word & 1 ? 0x9908b0dfu : 0);
}

static uint32_t next_word(struct ts_random *random)
{
    uint32_t *words = random->words, i, word;

    if (random->index >= TS_RANDOM_WORDS) {
        for (i = 0; i < TS_RANDOM_WORDS; i++)
            words[i] = mixed(words[i], words[(i + 1) % TS_RANDOM_WORDS], words[(i + SHIFTED) % TS_RANDOM_WORDS]);
        random->index = 0;
    }
    word = words[random->index++];
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

static double draw(struct ts_random *random)
{
    uint32_t high = next_word(random) >> 5, low = next_word(random) >> 6;

    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
}

/* What all stages do. */

static void count_drop(struct ts_pipeline *pipeline, enum ts_stage_kind stage, enum ts_shape_drop reason)
{
    pipeline->stages[stage].dropped[reason]++;
    pipeline->dropped++;
}

static void drop(struct ts_pipeline *pipeline, struct ts_packet *packet, enum ts_stage_kind stage,
                 enum ts_shape_drop reason)
{
    count_drop(pipeline, stage, reason);
    free(packet);
}

void ts_pipeline_lost(struct ts_pipeline *pipeline)
{
    enum ts_stage_kind stage = pipeline->has_rate ? TS_STAGE_RATE : TS_STAGE_DELAY;

    pipeline->stages[stage].received++;
    count_drop(pipeline, stage, TS_SHAPE_MEMORY);
}

static int take_memory(struct ts_pipeline *pipeline, const struct ts_packet *packet)
{
    uint64_t used = pipeline->memory_used + packet->length + pipeline->memory_overhead;

    if (used > pipeline->memory_limit)
        return 0;
    pipeline->memory_used = used;
    return 1;
}

static void give_memory(struct ts_pipeline *pipeline, const struct ts_packet *packet)
{
    pipeline->memory_used -= packet->length + pipeline->memory_overhead;
}

void ts_pipeline_drop_waiting(struct ts_pipeline *pipeline, struct ts_packet *packet)
{
    give_memory(pipeline, packet);
    drop(pipeline, packet, TS_STAGE_RATE, TS_SHAPE_QUEUE_FULL);
}

/* `packet` leaves `stage` at `at`. */
static void leave(struct ts_pipeline *pipeline, const struct ts_packet *packet, enum ts_stage_kind stage, double at)
{
    struct ts_stage *counts = &pipeline->stages[stage];
    double waited = at - packet->since;

    give_memory(pipeline, packet);
    counts->sent++;
    counts->waited += waited;
    if (waited > counts->longest)
        counts->longest = waited;
}

/* Delay. */

static void end(struct ts_pipeline *pipeline, struct ts_packet *packet, double at)
{
    packet->due = at;
    ts_line_append(&pipeline->passed, packet);
}

static void push_delay(struct ts_pipeline *pipeline, struct ts_packet *packet, double at)
{
    double seconds = pipeline->delay;

    if (!pipeline->has_delay) {
        end(pipeline, packet, at);
        return;
    }
    pipeline->stages[TS_STAGE_DELAY].received++;
    if (!take_memory(pipeline, packet)) {
        drop(pipeline, packet, TS_STAGE_DELAY, TS_SHAPE_MEMORY);
        return;
    }
    if (pipeline->jitter > 0) {
        seconds += pipeline->jitter * (2 * draw(&pipeline->delay_random) - 1);
        if (!(seconds > 0))
            seconds = 0;
    }
    packet->since = at;
    packet->due = at + seconds;
    if (pipeline->keep_order) {
        if (packet->due < pipeline->latest)
            packet->due = pipeline->latest;
        pipeline->latest = packet->due;
    }
    if (hold(pipeline, packet)) {
        give_memory(pipeline, packet);
        drop(pipeline, packet, TS_STAGE_DELAY, TS_SHAPE_MEMORY);
    }
}

static void advance_delay(struct ts_pipeline *pipeline, double now)
{
    while (pipeline->held_count && pipeline->held[0]->due <= now) {
        struct ts_packet *packet = take_soonest(pipeline);

        leave(pipeline, packet, TS_STAGE_DELAY, packet->due);
        end(pipeline, packet, packet->due);
    }
}

/* Rate. */

/* When the last bit leaves of a packet of `length` bytes that is next from `at` on. */
static double finish(struct ts_pipeline *pipeline, double at, uint32_t length)
{
    int64_t size = (int64_t)length + pipeline->overhead, cell = pipeline->cell;
    double start = at - pipeline->burst;

    if (size < 0)
        size = 0;
    if (cell)
        size = (size + cell - 1) / cell * (cell + (int64_t)pipeline->cell_overhead);
    if (pipeline->free > start)
        start = pipeline->free;
    pipeline->free = start + (double)size * pipeline->seconds_per_byte;
    return pipeline->free > at ? pipeline->free : at;
}

static void begin_sending(struct ts_pipeline *pipeline, struct ts_packet *packet, double at)
{
    pipeline->sending = packet;
    pipeline->begun = at;
    pipeline->done = finish(pipeline, at, packet->length);
}

static void advance_rate(struct ts_pipeline *pipeline, double now)
{
    struct ts_packet *packet;

    while ((packet = pipeline->sending) && pipeline->done <= now) {
        double done = pipeline->done;
        struct ts_packet *following = ts_queue_pop(pipeline, done);

        if (following)
            begin_sending(pipeline, following, done);
        else
            pipeline->sending = NULL;
        leave(pipeline, packet, TS_STAGE_RATE, done);
        push_delay(pipeline, packet, done);
    }
}

static void push_rate(struct ts_pipeline *pipeline, struct ts_packet *packet, double at)
{
    if (!pipeline->has_rate) {
        push_delay(pipeline, packet, at);
        return;
    }
    pipeline->stages[TS_STAGE_RATE].received++;
    advance_rate(pipeline, at);
    packet->since = at;
    if (!take_memory(pipeline, packet)) {
        drop(pipeline, packet, TS_STAGE_RATE, TS_SHAPE_MEMORY);
    } else if (!pipeline->sending) {
        begin_sending(pipeline, packet, at);
        advance_rate(pipeline, at); /* a burst leaves at once */
    } else {
        ts_queue_push(pipeline, packet);
    }
}

/* All of them. */

/* Time does not go back, whoever calls. */
static double tell(struct ts_pipeline *pipeline, double now)
{
    if (now > pipeline->told)
        pipeline->told = now;
    return pipeline->told;
}

void ts_pipeline_push(struct ts_pipeline *pipeline, struct ts_packet *packet, double at)
{
    at = tell(pipeline, at);
    if (pipeline->has_loss) {
        pipeline->stages[TS_STAGE_LOSS].received++;
        if (draw(&pipeline->loss_random) < pipeline->loss) {
            drop(pipeline, packet, TS_STAGE_LOSS, TS_SHAPE_LOSS);
            return;
        }
        pipeline->stages[TS_STAGE_LOSS].sent++;
    }
    push_rate(pipeline, packet, at);
}

void ts_pipeline_send(struct ts_pipeline *pipeline, const uint8_t *data, uint32_t length, double at)
{
    struct ts_packet *packet = ts_packet_new(length);

    if (!packet) {
        ts_pipeline_lost(pipeline);
        return;
    }
    memcpy(packet->data + TS_PIPELINE_GAP, data, length);
    ts_pipeline_push(pipeline, packet, at);
}

struct ts_packet *ts_pipeline_pop(struct ts_pipeline *pipeline, double now)
{
    now = tell(pipeline, now);
    if (!pipeline->passed.first) {
        advance_rate(pipeline, now);
        advance_delay(pipeline, now);
    }
    return ts_line_take(&pipeline->passed);
}

double ts_pipeline_deadline(const struct ts_pipeline *pipeline)
{
    double deadline = HUGE_VAL;

    if (pipeline->passed.first)
        return pipeline->passed.first->due;
    if (pipeline->sending)
        deadline = pipeline->done;
    if (pipeline->held_count && pipeline->held[0]->due < deadline)
        deadline = pipeline->held[0]->due;
    return deadline;
}

int ts_pipeline_put(struct ts_pipeline *pipeline, int place, const uint8_t *data, uint32_t length, double since,
                    double due)
{
    struct ts_packet *packet = ts_packet_new(length);

    if (!packet)
        return -1;
    memcpy(packet->data + TS_PIPELINE_GAP, data, length);
    packet->since = since;
    packet->due = due;
    switch (place) {
    case TS_AT_RATE:
        free(pipeline->sending);
        pipeline->sending = packet;
        return 0;
    case TS_AT_QUEUE:
        ts_queue_put(pipeline, packet);
        return 0;
    case TS_AT_DELAY:
        if (!hold(pipeline, packet))
            return 0;
        free(packet);
        return -1;
    default:
        ts_line_append(&pipeline->passed, packet);
        return 0;
    }
}

struct ts_packet *ts_pipeline_take(struct ts_pipeline *pipeline, int place)
{
    struct ts_packet *packet = pipeline->sending;

    switch (place) {
    case TS_AT_RATE:
        pipeline->sending = NULL;
        return packet;
    case TS_AT_QUEUE:
        return ts_queue_take(pipeline);
    case TS_AT_DELAY:
        return take_soonest(pipeline);
    default:
        return ts_line_take(&pipeline->passed);
    }
}
