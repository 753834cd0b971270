/* GRO. pure.py has the theory of operation and the same functions under the same names. */
#include <string.h>

#include "wire.h"

enum kind { OTHER, VAGUE, TCP };

struct tcp {
    const uint8_t *frame;
    uint32_t base, l4, payload, end; /* offsets in frame: IP, TCP, data, what follows */
    uint32_t seq;
    int version, push, mergeable, trusted;
};

struct train {
    struct tcp first;
    size_t head, tail; /* indices of its first and last member */
    uint32_t next_seq, ip_bytes;
};

static uint32_t size_of(const struct tcp *tcp)
{
    return tcp->end - tcp->payload;
}

static enum kind classify(const uint8_t *frame, uint32_t length, unsigned flags, int l2, struct tcp *tcp)
{
    uint32_t base = l2 ? TS_ETHERNET : 0;
    int version = ts_ip_version(frame, length, l2);
    const uint8_t *ip = frame + base;
    uint32_t l4, end, payload, control;

    if (version == 4) {
        if (ip[9] != TS_PROTOCOL_TCP)
            return OTHER;
        if (ip[0] != 0x45 || ts_get16(ip + 6) & 0xbfff)
            return VAGUE;
        l4 = base + 20;
        end = base + ts_get16(ip + 2);
    } else if (version == 6) {
        if (ip[6] != TS_PROTOCOL_TCP)
            return ip[6] == TS_PROTOCOL_UDP || ip[6] == TS_PROTOCOL_ICMPV6 ? OTHER : VAGUE;
        l4 = base + 40;
        end = l4 + ts_get16(ip + 4);
    } else {
        return OTHER;
    }
    if (end > length || end < l4 + 20)
        return VAGUE;
    payload = l4 + (uint32_t)(frame[l4 + 12] >> 4) * 4;
    if (payload < l4 + 20 || payload > end)
        return VAGUE;
    control = frame[l4 + 13];
    tcp->frame = frame;
    tcp->base = base;
    tcp->l4 = l4;
    tcp->payload = payload;
    tcp->end = end;
    tcp->seq = ts_get32(frame + l4 + 4);
    tcp->version = version;
    tcp->push = (control & TS_PSH) != 0;
    tcp->trusted = (flags & TS_TRUSTED) != 0;
    tcp->mergeable = !(flags & TS_OPAQUE) && (control & ~TS_PSH) == TS_ACK && !(frame[l4 + 12] & 0x0f) &&
                     end > payload;
    return TCP;
}

/* Addresses and ports are adjacent in both families when nothing stands between the headers. */
static int same_flow(const struct tcp *a, const struct tcp *b)
{
    uint32_t start = a->base + (a->version == 4 ? 12u : 8u);

    return a->version == b->version && !memcmp(a->frame + start, b->frame + start, a->l4 + 4 - start);
}

static int same_bytes(const struct tcp *a, const struct tcp *b, uint32_t start, uint32_t end)
{
    return !memcmp(a->frame + start, b->frame + start, end - start);
}

/* All header bytes in which the packets of a train are equal; both are of one flow. */
static int same_shape(const struct tcp *a, const struct tcp *b)
{
    uint32_t base = a->base, l4 = a->l4;

    if (a->payload != b->payload || !same_bytes(a, b, 0, base))
        return 0;
    if (a->version == 4) {
        if (!same_bytes(a, b, base, base + 2) || !same_bytes(a, b, base + 6, base + 10))
            return 0;
    } else if (!same_bytes(a, b, base, base + 4) || !same_bytes(a, b, base + 6, base + 8)) {
        return 0;
    }
    return same_bytes(a, b, l4 + 8, l4 + 13) && same_bytes(a, b, l4 + 14, l4 + 16) &&
           same_bytes(a, b, l4 + 18, a->payload);
}

static int fits(const struct train *train, const struct tcp *tcp, uint32_t limit)
{
    return tcp->seq == train->next_seq && size_of(tcp) <= size_of(&train->first) &&
           train->ip_bytes + size_of(tcp) <= limit && same_shape(&train->first, tcp);
}

static int verify(const struct tcp *tcp)
{
    const uint8_t *ip = tcp->frame + tcp->base;
    uint32_t length = tcp->end - tcp->l4;

    if (tcp->version == 4 && ts_ones_sum(ip, 20, 0) != 0xffff)
        return 0;
    if (tcp->trusted)
        return 1;
    return ts_ones_sum(tcp->frame + tcp->l4, length, ts_pseudo(ip, tcp->version, TS_PROTOCOL_TCP, length)) ==
           0xffff;
}

/* The open trains, oldest first. */
struct table {
    struct train trains[TS_COALESCE_FLOWS];
    size_t count;
};

static struct train *find(struct table *open, const struct tcp *tcp)
{
    size_t i;

    for (i = 0; i < open->count; i++)
        if (same_flow(&open->trains[i].first, tcp))
            return &open->trains[i];
    return NULL;
}

static void close_train(struct table *open, struct train *train)
{
    struct train *end = open->trains + open->count;

    memmove(train, train + 1, (size_t)(end - (train + 1)) * sizeof *train);
    open->count--;
}

static void open_train(struct table *open, size_t index, const struct tcp *tcp)
{
    struct train *train;

    if (open->count == TS_COALESCE_FLOWS)
        close_train(open, open->trains);
    train = &open->trains[open->count++];
    train->first = *tcp;
    train->head = train->tail = index;
    train->next_seq = tcp->seq + size_of(tcp);
    train->ip_bytes = tcp->end - tcp->base;
}

static void append(struct train *train, size_t index, const struct tcp *tcp, struct ts_row *rows)
{
    struct ts_row *head = &rows[train->head];

    if (train->head == train->tail) {
        head->version = train->first.version;
        head->gso_size = (int32_t)size_of(&train->first);
        head->payload = (int32_t)train->first.payload;
        head->payload_length = head->gso_size;
        head->length = (int32_t)train->first.end; /* without padding */
    }
    head->length += (int32_t)size_of(tcp);
    head->push = tcp->push;
    rows[train->tail].next = (int32_t)index;
    rows[index].length = -1;
    rows[index].payload = (int32_t)tcp->payload;
    rows[index].payload_length = (int32_t)size_of(tcp);
    train->tail = index;
    train->next_seq = tcp->seq + size_of(tcp);
    train->ip_bytes += size_of(tcp);
}

/* One packet that may merge: 1 if it was absorbed. */
static int offer(struct table *open, size_t index, const struct tcp *tcp, uint32_t limit, struct ts_row *rows)
{
    struct train *train = find(open, tcp);

    if (train) {
        if (!tcp->mergeable || !fits(train, tcp, limit) ||
            (train->head == train->tail && !verify(&train->first))) {
            close_train(open, train);
        } else if (!verify(tcp)) {
            close_train(open, train);
            return 0;
        } else {
            append(train, index, tcp, rows);
            if (tcp->push || size_of(tcp) < size_of(&train->first))
                close_train(open, train);
            return 1;
        }
    }
    if (tcp->mergeable && !tcp->push)
        open_train(open, index, tcp);
    return 0;
}

/* The packets of the train that starts at `index` as one, at `out`, which has room for rows[index].length bytes. */
static void merge(const uint8_t *const *frames, const struct ts_row *rows, size_t index, int l2, uint8_t *out)
{
    const struct ts_row *head = &rows[index];
    size_t base = l2 ? TS_ETHERNET : 0;
    size_t header = head->version == 4 ? 20 : 40;
    size_t length = (size_t)head->length;
    uint8_t *ip = out + base, *tcp = ip + header, *at = out + head->payload;

    memcpy(out, frames[index], (size_t)head->payload);
    do {
        memcpy(at, frames[index] + rows[index].payload, (size_t)rows[index].payload_length);
        at += rows[index].payload_length;
        index = (size_t)rows[index].next;
    } while (index);
    if (head->push)
        tcp[13] |= TS_PSH;
    ts_fix_ip(ip, head->version, header, length - base);
    ts_put16(tcp + 16, ts_pseudo(ip, head->version, TS_PROTOCOL_TCP, length - base - header));
}

int64_t ts_coalesce(const uint8_t *const *frames, const uint32_t *lengths, const uint8_t *flags, size_t count,
                    int l2, uint32_t limit, uint8_t *out, size_t capacity, int32_t *numbers)
{
    struct ts_row *rows = (struct ts_row *)numbers; /* nothing but int32_t in it: the same layout */
    struct table open;
    struct tcp tcp;
    int64_t absorbed = 0;
    size_t i, used = 0;

    open.count = 0;
    for (i = 0; i < count && i < INT32_MAX; i++) {
        switch (classify(frames[i], lengths[i], flags[i], l2, &tcp)) {
        case TCP:
            absorbed += offer(&open, i, &tcp, limit, rows);
            break;
        case VAGUE:
            open.count = 0;
            break;
        case OTHER:
            break;
        }
    }
    if (!absorbed)
        return 0;
    for (i = 0; i < count; i++) {
        if (rows[i].length <= 0)
            continue;
        if ((size_t)rows[i].length > capacity - used)
            return -1;
        rows[i].offset = (int32_t)used;
        merge(frames, rows, i, l2, out + used);
        used += (size_t)rows[i].length;
    }
    return absorbed;
}
