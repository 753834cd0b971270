/* Which flows there are: by key and by descriptor, and the lists that they stand in. */
#define _GNU_SOURCE
#include "fast_brief.h"
#include "fast_shape.h"
#include "fast_switch.h"
#include "fast_udp.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 64

static struct ts_flow tomb;

struct ts_fast *ts_fast_new(uint64_t seed)
{
    struct ts_fast *fast = calloc(1, sizeof *fast);

    if (!fast)
        return NULL;
    fast->seed = seed;
    fast->epoll_fd = fast->device_fd = -1;
    fast->fixed_now = -1;
    fast->burst = fast->burst_minimum = TS_FAST_FRAMES;
    fast->capacity = FIRST_CAPACITY;
    fast->flows = calloc(fast->capacity, sizeof *fast->flows);
    fast->buffers = malloc((size_t)TS_FAST_FRAMES * TS_FAST_FRAME);
    if (!fast->flows || !fast->buffers || ts_udp_new(fast) || ts_brief_init(fast)) {
        ts_fast_free(fast);
        return NULL;
    }
    return fast;
}

/* The flows must have been removed and freed. */
void ts_fast_free(struct ts_fast *fast)
{
    while (fast->pages) {
        struct ts_page *page = fast->pages;

        fast->pages = page->next;
        free(page);
    }
    while (fast->records) {
        struct ts_sent *record = fast->records;

        fast->records = record->next;
        free(record);
    }
    ts_udp_free(fast);
    ts_brief_free(fast);
    ts_shape_close(fast);
    ts_stream_free(fast->stream);
    ts_switch_free(fast->sw);
    free(fast->refused.data);
    free(fast->buffers);
    free(fast->flows);
    free(fast->by_fd);
    free(fast->marked);
    free(fast->reports);
    free(fast);
}

struct ts_flow *ts_flow_new(void)
{
    return calloc(1, sizeof(struct ts_flow));
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    a ^= b * 0x9e3779b97f4a7c15u;
    a ^= a >> 32;
    a *= 0xd6e8feb86659fd93u;
    a ^= a >> 32;
    a *= 0xd6e8feb86659fd93u;
    return a ^ a >> 32;
}

/* Keyed by a secret: a guest that chooses addresses and ports does not choose where they fall. */
uint64_t ts_fast_hash(const struct ts_fast *fast, const uint8_t *addresses, int family, const uint8_t *ports)
{
    uint64_t hash = mix(fast->seed, ts_get32(ports));
    size_t size = family == 4 ? 8 : 32, i;

    for (i = 0; i < size; i += 8)
        hash = mix(hash + fast->seed, (uint64_t)ts_get32(addresses + i) << 32 | ts_get32(addresses + i + 4));
    return hash;
}

struct ts_flow *ts_fast_find(const struct ts_fast *fast, const uint8_t *addresses, int family,
                             const uint8_t *ports)
{
    uint64_t hash;
    uint32_t at;
    size_t size = family == 4 ? 8 : 32;

    if (!fast->flow_count)
        return NULL;
    hash = ts_fast_hash(fast, addresses, family, ports);
    for (at = (uint32_t)hash & (fast->capacity - 1); fast->flows[at]; at = (at + 1) & (fast->capacity - 1)) {
        struct ts_flow *flow = fast->flows[at];

        if (flow != &tomb && flow->hash == hash && flow->family == family && !memcmp(flow->ports, ports, 4) &&
            !memcmp(flow->address, addresses, size))
            return flow;
    }
    return NULL;
}

static void put(struct ts_flow **flows, uint32_t capacity, struct ts_flow *flow)
{
    uint32_t at = (uint32_t)flow->hash & (capacity - 1);

    while (flows[at] && flows[at] != &tomb)
        at = (at + 1) & (capacity - 1);
    flows[at] = flow;
}

void *ts_fast_grow(void *table, int32_t *capacity, int fd)
{
    int32_t wanted = fd < 0x3fffffff ? (fd | 255) + 1 : 0;
    void **fresh;

    if (fd < *capacity)
        return table;
    fresh = wanted ? realloc(table, (size_t)wanted * sizeof *fresh) : NULL;
    if (!fresh)
        return NULL;
    memset(fresh + *capacity, 0, (size_t)(wanted - *capacity) * sizeof *fresh);
    *capacity = wanted;
    return fresh;
}

/* Room for one more flow in the table and in the lists, each of which holds a flow once at most. */
static int make_room(struct ts_fast *fast, int fd)
{
    uint32_t capacity, i;
    struct ts_flow **fresh;

    if (fast->flow_count + 1 > fast->list_capacity) {
        capacity = fast->list_capacity ? 2 * fast->list_capacity : FIRST_CAPACITY;
        fresh = realloc(fast->marked, capacity * sizeof *fresh);
        if (!fresh)
            return -1;
        fast->marked = fresh;
        fresh = realloc(fast->reports, capacity * sizeof *fresh);
        if (!fresh)
            return -1;
        fast->reports = fresh;
        fast->list_capacity = capacity;
    }
    fresh = ts_fast_grow(fast->by_fd, &fast->fd_capacity, fd);
    if (!fresh)
        return -1;
    fast->by_fd = fresh;
    if (2 * (fast->used + 1) <= fast->capacity)
        return 0;
    capacity = 4 * (fast->flow_count + 1) > fast->capacity ? 2 * fast->capacity : fast->capacity;
    fresh = calloc(capacity, sizeof *fresh);
    if (!fresh)
        return -1;
    for (i = 0; i < fast->capacity; i++)
        if (fast->flows[i] && fast->flows[i] != &tomb)
            put(fresh, capacity, fast->flows[i]);
    free(fast->flows);
    fast->flows = fresh;
    fast->capacity = capacity;
    fast->used = fast->flow_count;
    return 0;
}

int ts_flow_is_sound(const struct ts_flow *flow)
{
    uint32_t ip_header = flow->family == 4 ? 20 : 40;

    return (flow->family == 4 || flow->family == 6) && flow->head_length <= TS_FAST_HEAD &&
           flow->head_length >= ip_header && flow->link_length == flow->head_length - ip_header && flow->mss &&
           flow->mss <= 0xffff && flow->snd_shift <= 14 && flow->rcv_shift <= 14;
}

int ts_fast_insert(struct ts_fast *fast, struct ts_flow *flow)
{
    if (flow->fd < 0 || ts_fast_find(fast, flow->address, flow->family, flow->ports) ||
        (flow->fd < fast->fd_capacity && fast->by_fd[flow->fd]) || make_room(fast, flow->fd))
        return -1;
    flow->hash = ts_fast_hash(fast, flow->address, flow->family, flow->ports);
    put(fast->flows, fast->capacity, flow);
    fast->used++;
    fast->flow_count++;
    fast->by_fd[flow->fd] = flow;
    return 0;
}

int ts_fast_offer(struct ts_fast *fast, struct ts_flow *flow)
{
    double deadline = flow->ack_deadline;

    if (!ts_flow_is_sound(flow) || flow->snd_nxt - flow->snd_una > flow->out.length || ts_fast_insert(fast, flow))
        return -1;
    flow->ack_deadline = TS_NEVER;
    if (deadline != TS_NEVER)
        ts_flow_arm_ack(fast, flow, deadline);
    return 0;
}

static void unlist(struct ts_flow **list, uint32_t *count, const struct ts_flow *flow)
{
    uint32_t i;

    for (i = 0; i < *count; i++)
        if (list[i] == flow) {
            memmove(list + i, list + i + 1, (*count - i - 1) * sizeof *list);
            (*count)--;
            return;
        }
}

void ts_fast_remove(struct ts_fast *fast, struct ts_flow *flow)
{
    uint32_t at = (uint32_t)flow->hash & (fast->capacity - 1);
    double deadline = flow->ack_deadline;

    while (fast->flows[at] != flow)
        at = (at + 1) & (fast->capacity - 1);
    fast->flows[at] = &tomb;
    fast->flow_count--;
    if (flow->fd >= 0)
        fast->by_fd[flow->fd] = NULL;
    if (flow->is_brief)
        ts_brief_unlink(fast, flow);
    if (flow->is_marked)
        unlist(fast->marked, &fast->marked_count, flow);
    if (flow->is_listed)
        unlist(fast->reports, &fast->report_count, flow);
    ts_flow_disarm_ack(fast, flow);
    flow->ack_deadline = deadline;
}

void ts_fast_mark(struct ts_fast *fast, struct ts_flow *flow)
{
    if (!flow->is_marked) {
        flow->is_marked = 1;
        fast->marked[fast->marked_count++] = flow;
    }
}

void ts_flow_report(struct ts_fast *fast, struct ts_flow *flow, uint32_t what)
{
    flow->report |= what;
    if (!flow->is_listed) {
        flow->is_listed = 1;
        fast->reports[fast->report_count++] = flow;
    }
}

void ts_flow_return(struct ts_fast *fast, struct ts_flow *flow, enum ts_reason reason)
{
    if (flow->reason != TS_KEPT)
        return;
    flow->reason = (int32_t)reason;
    if (reason == TS_MEMORY)
        flow->is_notified = 1; /* its owner looks for a way out */
    fast->returned[reason]++;
    ts_flow_report(fast, flow, TS_REPORT_RETURN);
}

/* Delayed acknowledgements are due in the order in which they were armed, but for those of new flows. */
void ts_flow_arm_ack(struct ts_fast *fast, struct ts_flow *flow, double deadline)
{
    struct ts_flow *older = fast->ack_newest;

    while (older && older->ack_deadline > deadline)
        older = older->ack_older;
    flow->ack_deadline = deadline;
    flow->is_waiting = 1;
    flow->ack_older = older;
    flow->ack_newer = older ? older->ack_newer : fast->ack_oldest;
    if (flow->ack_newer)
        flow->ack_newer->ack_older = flow;
    else
        fast->ack_newest = flow;
    if (older)
        older->ack_newer = flow;
    else
        fast->ack_oldest = flow;
}

void ts_flow_disarm_ack(struct ts_fast *fast, struct ts_flow *flow)
{
    flow->ack_deadline = TS_NEVER;
    if (!flow->is_waiting)
        return;
    flow->is_waiting = 0;
    if (flow->ack_older)
        flow->ack_older->ack_newer = flow->ack_newer;
    else
        fast->ack_oldest = flow->ack_newer;
    if (flow->ack_newer)
        flow->ack_newer->ack_older = flow->ack_older;
    else
        fast->ack_newest = flow->ack_older;
    flow->ack_older = flow->ack_newer = NULL;
}
