/* What holds for the fast path whatever is done to it. */
#include "fast.h"

#include <stdbool.h>

/* Pages of a chain, all of them in use. */
static int64_t pages_of(const struct ts_chain *chain)
{
    const struct ts_page *page, *last = NULL;
    int64_t pages = 0;

    for (page = chain->first; page; page = page->next) {
        last = page;
        pages++;
    }
    CHECK(last == chain->last);
    CHECK(chain->length ? chain->head < TS_FAST_PAGE : !chain->head && !pages);
    CHECK(pages == ((int64_t)chain->head + chain->length + TS_FAST_PAGE - 1) / TS_FAST_PAGE);
    return pages;
}

/* The records are in order and make up what is in flight. */
static void check_records(const struct slot *slot)
{
    const struct ts_flow *flow = slot->flow;
    const struct ts_sent *record, *last = NULL;
    uint32_t count = 0, next = flow->snd_una;

    for (record = flow->sent_first; record; record = record->next) {
        CHECK(record->seq == next && ts_diff(record->end, next) > 0);
        next = record->end;
        last = record;
        count++;
    }
    CHECK(next == flow->snd_nxt && last == flow->sent_last && count == flow->sent_count);
    CHECK(count <= slot->most_sent);
    CHECK(flow->snd_nxt - flow->snd_una <= flow->out.length);
}

static void check_list(struct ts_flow *const *list, uint32_t count, bool marked)
{
    uint32_t i, j;

    for (i = 0; i < count; i++) {
        CHECK(marked ? list[i]->is_marked : list[i]->is_listed);
        for (j = 0; j < i; j++)
            CHECK(list[i] != list[j]);
    }
}

static void check_ack_list(const struct world *world)
{
    const struct ts_flow *flow, *older = NULL;
    uint32_t waiting = 0, i;

    for (flow = world->fast->ack_oldest; flow; flow = flow->ack_newer) {
        CHECK(flow->is_waiting && flow->ack_older == older);
        CHECK(!older || older->ack_deadline <= flow->ack_deadline);
        older = flow;
        waiting++;
    }
    CHECK(world->fast->ack_newest == older);
    for (i = 0; i < SLOTS; i++)
        if (world->slots[i].flow)
            waiting -= world->slots[i].flow->is_waiting;
    CHECK(!waiting);
}

void check_world(struct world *world)
{
    const struct ts_fast *fast = world->fast;
    int64_t out = 0, in = 0, readable = 0;
    uint32_t flows = 0, i, listed = 0, marked = 0;

    for (i = 0; i < SLOTS; i++) {
        struct slot *slot = &world->slots[i];
        struct ts_flow *flow = slot->flow;
        uint32_t borrowed = 0, k;

        if (!flow)
            continue;
        flows++;
        CHECK(ts_fast_find(fast, flow->address, flow->family, flow->ports) == flow);
        CHECK(fast->by_fd[flow->fd] == flow);
        out += pages_of(&flow->out) * TS_FAST_PAGE;
        in += pages_of(&flow->in) * TS_FAST_PAGE;
        CHECK(flow->borrowed_count <= TS_FAST_FRAMES);
        for (k = 0; k < flow->borrowed_count; k++)
            borrowed += flow->borrowed_length[k];
        CHECK(borrowed == flow->borrowed_bytes);
        readable += ts_flow_readable(flow);
        check_records(slot);
        CHECK(ts_diff(flow->rcv_adv, slot->seen_adv) >= 0);
        slot->seen_adv = flow->rcv_adv;
        listed += flow->is_listed;
        marked += flow->is_marked;
        CHECK(!flow->is_waiting || flow->ack_deadline != TS_NEVER);
        CHECK(flow->reason != TS_KEPT ? flow->is_listed : !(flow->report & TS_REPORT_RETURN));
    }
    CHECK(flows == fast->flow_count && flows <= fast->used && 2 * fast->used <= fast->capacity);
    CHECK(fast->send_free == world->send_limit - out);
    CHECK(fast->keep_free == world->keep_limit - in);
    CHECK(fast->receive_free == world->receive_limit - readable);
    CHECK(listed == fast->report_count && marked == fast->marked_count);
    check_list(fast->reports, fast->report_count, false);
    check_list(fast->marked, fast->marked_count, true);
    check_ack_list(world);
    CHECK(fast->frame_count <= TS_FAST_FRAMES && fast->ready_count <= TS_FAST_EVENTS);
    for (i = 0; i < fast->frame_count; i++)
        CHECK(fast->frames[i].length <= TS_FAST_FRAME);
}

void copy_queues(const struct ts_flow *flow, uint8_t **out, uint8_t **in)
{
    *out = exactly(flow->out.length);
    *in = exactly(ts_flow_readable(flow));
    CHECK(ts_flow_copy(flow, 0, *out, flow->out.length + 1) == -1);
    CHECK(!ts_flow_copy(flow, 0, *out, flow->out.length));
    CHECK(!ts_flow_copy(flow, 1, *in, ts_flow_readable(flow)));
}

void check_queues(const struct slot *slot, const uint8_t *out, const uint8_t *in)
{
    const struct ts_flow *flow = slot->flow;
    uint32_t readable = ts_flow_readable(flow);

    CHECK(is_content(out, flow->snd_una, flow->out.length));
    CHECK(is_content(in, flow->rcv_nxt - readable, readable));
}

/* A copy of `flow` without what a returned flow may change in: the lists that it stands in, where its bytes are. */
static void freeze(const struct ts_flow *flow, struct ts_flow *frozen)
{
    memcpy(frozen, flow, sizeof *flow);
    memset(&frozen->in, 0, sizeof frozen->in);
    memset(frozen->borrowed, 0, sizeof frozen->borrowed);
    memset(frozen->borrowed_length, 0, sizeof frozen->borrowed_length);
    frozen->borrowed_count = frozen->borrowed_bytes = 0;
    frozen->is_marked = frozen->is_listed = frozen->is_waiting = frozen->is_notified = 0;
    frozen->report = 0;
    frozen->ack_older = frozen->ack_newer = NULL;
}

void check_call(struct world *world)
{
    uint32_t i;

    for (i = 0; i < SLOTS; i++) {
        struct slot *slot = &world->slots[i];
        struct ts_flow now;
        uint8_t *out, *in;

        if (!slot->flow || slot->flow->reason == TS_KEPT)
            continue;
        CHECK(slot->flow->report & TS_REPORT_RETURN);
        freeze(slot->flow, &now);
        copy_queues(slot->flow, &out, &in);
        if (slot->is_frozen) {
            CHECK(!memcmp(&now, &slot->frozen, sizeof now));
            CHECK(slot->in_length == ts_flow_readable(slot->flow) && !memcmp(in, slot->in, slot->in_length));
            CHECK(!memcmp(out, slot->out, slot->flow->out.length));
            release(out, slot->flow->out.length);
            release(in, slot->in_length);
        } else {
            check_queues(slot, out, in);
            memcpy(&slot->frozen, &now, sizeof now);
            slot->out = out;
            slot->in = in;
            slot->in_length = ts_flow_readable(slot->flow);
            slot->is_frozen = 1;
        }
    }
}

void check_sent(const struct world *world, const uint8_t *data, size_t length)
{
    const struct ts_fast *fast = world->fast;
    const uint8_t *frame = data + TS_FAST_VNET, *ip = frame + (fast->l2 ? TS_ETHERNET : 0), *tcp;
    int family = ip[0] >> 4;
    size_t l4 = (fast->l2 ? TS_ETHERNET : 0u) + (family == 4 ? 20u : 40u), size, end;
    uint16_t start, offset, gso_size;

    memcpy(&gso_size, data + 4, 2);
    memcpy(&start, data + 6, 2);
    memcpy(&offset, data + 8, 2);
    CHECK(length >= TS_FAST_VNET + l4 + 32 && (family == 4 || family == 6));
    tcp = frame + l4;
    end = length - TS_FAST_VNET;
    size = end - l4 - 32;
    CHECK(data[0] == 1 && start == l4 && offset == 16);
    CHECK(data[1] == (gso_size ? family == 4 ? 1 : 4 : 0) && (!gso_size || size > gso_size));
    if (fast->l2)
        CHECK(!memcmp(frame, guest_mac, 6) && ts_get16(frame + 12) == (family == 4 ? 0x0800 : 0x86dd));
    if (family == 4)
        CHECK(plain_sum(ip, 20, 0) == 0xffff && ts_get16(ip + 2) == (fast->l2 ? end - TS_ETHERNET : end));
    else
        CHECK(ts_get16(ip + 4) == end - l4);
    CHECK(ts_get16(tcp + 16) == plain_pseudo(ip, TS_PROTOCOL_TCP, size + 32));
    CHECK(tcp[12] == 0x80 && (tcp[13] & ~TS_PSH) == TS_ACK && ts_get32(tcp + 20) == 0x0101080a);
    CHECK(is_content(tcp + 32, ts_get32(tcp + 4), (uint32_t)size));
}
