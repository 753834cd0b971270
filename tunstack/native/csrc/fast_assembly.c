/* Datagrams of the guest in fragments, put together as long as they come in order; see fast_udp.h. */
#define _GNU_SOURCE
#include "fast_udp_state.h"

#include <stdlib.h>

#define PATIENCE 0.001 /* seconds for which a datagram is waited for */
/* Seconds for which it is remembered that a datagram is Python's: copies come sooner, the next one of its number later. */
#define MEMORY 0.1

/* What of a fragment matters here. */
struct fragment {
    const uint8_t *frame, *ip, *data; /* data: behind the headers */
    uint32_t frame_length, size, offset;
    uint64_t key;
    int family, more, traffic_class, dont_fragment;
};

static const uint8_t *addresses_of(const struct fragment *fragment)
{
    return fragment->ip + (fragment->family == 4 ? 12 : 8);
}

/* The fragments of the datagram `key` go to Python from now on. */
static void remember(struct ts_fast *fast, uint64_t key)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; i < TS_UDP_LEFT && state->left[i].key != key; i++)
        ;
    if (i == TS_UDP_LEFT) {
        i = state->left_next;
        state->left_next = (i + 1) % TS_UDP_LEFT;
    }
    state->left[i].key = key;
    state->left[i].until = state->left_until = fast->now + MEMORY;
}

static int is_left(const struct ts_fast *fast, uint64_t key)
{
    const struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; state->left_until > fast->now && i < TS_UDP_LEFT; i++)
        if (state->left[i].key == key)
            return state->left[i].until > fast->now;
    return 0;
}

/* 1 if the frame is a fragment of a datagram, without anything that is Python's to look at. */
static int parse(const struct ts_fast *fast, const uint8_t *frame, uint32_t length, struct fragment *fragment)
{
    const uint8_t *packet = frame + TS_FAST_VNET, *ip;
    uint32_t end, word, header, ident;
    uint8_t number[4];

    fragment->family = ts_fast_find_ip(fast, packet, length - TS_FAST_VNET, &ip, &end);
    if (!fragment->family || frame[0] & TS_NEEDS_CHECKSUM || frame[1])
        return 0;
    if (fragment->family == 4) {
        header = 20;
        word = ts_get16(ip + 6);
        ident = ts_get16(ip + 4);
        fragment->offset = (word & 0x1fff) << 3;
        fragment->more = word >> 13 & 1;
        fragment->dont_fragment = word >> 14 & 1;
        fragment->traffic_class = ip[1];
        if (ip[9] != TS_PROTOCOL_UDP)
            return 0;
    } else {
        header = 40 + TS_FRAGMENT_HEADER;
        if (ip[6] != TS_PROTOCOL_FRAGMENT || ip + header > packet + end || ip[40] != TS_PROTOCOL_UDP)
            return 0;
        word = ts_get16(ip + 42);
        ident = ts_get32(ip + 44);
        fragment->offset = word & 0xfff8;
        fragment->more = word & 1;
        fragment->dont_fragment = 1;
        fragment->traffic_class = (ip[0] << 4 | ip[1] >> 4) & 0xff;
    }
    fragment->frame = frame;
    fragment->frame_length = TS_FAST_VNET + end;
    fragment->ip = ip;
    fragment->data = ip + header;
    fragment->size = (uint32_t)(packet + end - fragment->data);
    ts_put32(number, ident);
    fragment->key = ts_fast_hash(fast, addresses_of(fragment), fragment->family, number);
    return (fragment->offset || fragment->more) && fragment->size && !(fragment->more && fragment->size & 7);
}

/* The open assembly of the same source, destination and identification; NULL: there is none. */
static struct ts_assembly *find(const struct ts_udp_state *state, const struct fragment *fragment)
{
    uint32_t i;

    for (i = 0; state->open_count && i < TS_UDP_ASSEMBLIES; i++) {
        struct ts_assembly *assembly = state->assemblies[i];

        if (assembly && assembly->state == TS_ASSEMBLY_OPEN && assembly->path && assembly->key == fragment->key &&
            assembly->path->family == fragment->family &&
            !memcmp(assembly->path->address, addresses_of(fragment), fragment->family == 4 ? 8 : 32))
            return assembly;
    }
    return NULL;
}

static struct ts_assembly *find_free(struct ts_udp_state *state)
{
    uint32_t i;

    for (i = 0; i < TS_UDP_ASSEMBLIES; i++) {
        if (!state->assemblies[i])
            state->assemblies[i] = calloc(1, sizeof **state->assemblies);
        if (!state->assemblies[i])
            return NULL;
        if (state->assemblies[i]->state == TS_ASSEMBLY_FREE)
            return state->assemblies[i];
    }
    return NULL;
}

/* Whether a frame of the socket may not overtake what has gone to Python, or is not of the guest that it belongs to. */
static int is_held(const struct ts_fast *fast, const struct ts_udp_socket *socket, const struct fragment *fragment)
{
    const struct ts_udp_state *state = ts_udp_state_of(fast);

    return socket->held == state->call || state->held == state->call ||
           (fast->l2 && memcmp(fragment->frame + TS_FAST_VNET + 6, socket->mac, 6));
}

/* The packet's beginning, as if it had not been cut; what of it is not there yet comes with the fragments. */
static void begin_quote(struct ts_assembly *assembly, const struct fragment *first)
{
    uint32_t header = first->family == 4 ? 20 : 40;
    uint8_t *ip = assembly->quote;

    memcpy(ip, first->ip, header);
    if (first->family == 6) {
        ip[6] = TS_PROTOCOL_UDP;
    } else {
        ip[6] &= 0x40;
        ip[7] = 0;
    }
    ts_fix_ip(ip, first->family, header, header + assembly->length);
    assembly->quote_length = header;
}

/* An assembly for the datagram that `first` begins; NULL: it is Python's. */
static struct ts_assembly *begin(struct ts_fast *fast, const struct fragment *first)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct ts_assembly *assembly;
    struct ts_udp_path *path;
    uint32_t length;
    int hop_limit = first->family == 4 ? first->ip[8] : first->ip[7];

    if (first->offset || first->size < TS_UDP_HEADER || !state->shared.most_pieces || is_left(fast, first->key))
        return NULL;
    path = ts_udp_find(fast, addresses_of(first), first->family, first->data);
    length = ts_get16(first->data + 4);
    if (!path || hop_limit <= 1 || is_held(fast, path->socket, first) ||
        !first->dont_fragment != !path->socket->dont_fragment || (first->family == 4 && length > 65535 - 20) ||
        (first->family == 6 && !ts_get16(first->data + 6)))
        return NULL;
    assembly = find_free(state);
    if (!assembly)
        return NULL;
    assembly->state = TS_ASSEMBLY_OPEN;
    assembly->path = path;
    assembly->deadline = fast->now + PATIENCE;
    assembly->key = first->key;
    assembly->traffic_class = first->traffic_class;
    assembly->hop_limit = hop_limit - !path->is_own;
    assembly->dont_fragment = first->dont_fragment;
    assembly->length = length;
    assembly->next = assembly->count = assembly->used = 0;
    assembly->is_summed = ts_get16(first->data + 6) != 0;
    assembly->sum = ts_pseudo(first->ip, first->family, TS_PROTOCOL_UDP, length);
    begin_quote(assembly, first);
    state->open_count++;
    return assembly;
}

/* Whether `fragment` is the one that is due. */
static int fits(const struct ts_fast *fast, const struct ts_assembly *assembly, const struct fragment *fragment)
{
    uint32_t end = fragment->offset + fragment->size;

    return !is_held(fast, assembly->path->socket, fragment) && fragment->offset == assembly->next &&
           fragment->traffic_class == assembly->traffic_class &&
           fragment->dont_fragment == assembly->dont_fragment &&
           (fragment->more ? end < assembly->length : end == assembly->length) &&
           assembly->count < TS_UDP_PIECES && assembly->count < fast->udp->most_pieces &&
           fragment->frame_length <= sizeof assembly->memory - assembly->used;
}

static void append(struct ts_assembly *assembly, const struct fragment *fragment, uint64_t order)
{
    struct ts_piece *piece = &assembly->pieces[assembly->count];
    struct iovec *view = &assembly->views[assembly->count++];
    uint8_t *copy = assembly->memory + assembly->used;
    uint32_t skip = fragment->offset ? 0 : TS_UDP_HEADER, quoted = TS_UDP_QUOTE - assembly->quote_length;

    memcpy(copy, fragment->frame, fragment->frame_length);
    piece->at = assembly->used;
    piece->length = fragment->frame_length;
    piece->order = order;
    view->iov_base = copy + (fragment->data - fragment->frame) + skip;
    view->iov_len = fragment->size - skip;
    if (quoted > fragment->size)
        quoted = fragment->size;
    memcpy(assembly->quote + assembly->quote_length, fragment->data, quoted);
    assembly->quote_length += quoted;
    assembly->sum = ts_ones_sum(fragment->data, fragment->size, assembly->sum);
    assembly->used += fragment->frame_length;
    assembly->next += fragment->size;
}

static void collect(struct ts_assembly *assembly, struct ts_collected *collected)
{
    memset(collected, 0, sizeof *collected);
    collected->path = assembly->path;
    collected->assembly = assembly;
    collected->ip = assembly->quote;
    collected->ip_length = assembly->quote_length;
    collected->size = assembly->length - TS_UDP_HEADER;
    collected->hop_limit = assembly->hop_limit;
    collected->traffic_class = assembly->traffic_class;
}

enum ts_fragment ts_assembly_take(struct ts_fast *fast, const uint8_t *frame, uint32_t length,
                                  struct ts_collected *collected)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    struct fragment fragment;
    struct ts_assembly *assembly;

    if (!parse(fast, frame, length, &fragment))
        return TS_FRAGMENT_NOT;
    assembly = find(state, &fragment);
    if (!assembly)
        assembly = begin(fast, &fragment);
    if (!assembly) {
        remember(fast, fragment.key);
        return TS_FRAGMENT_NOT;
    }
    if (!fits(fast, assembly, &fragment)) {
        ts_assembly_leave(fast, assembly);
        return TS_FRAGMENT_NOT;
    }
    append(assembly, &fragment, fast->order);
    if (fragment.more)
        return TS_FRAGMENT_KEPT;
    if (assembly->is_summed && assembly->sum != 0xffff) {
        ts_assembly_leave(fast, assembly);
        return TS_FRAGMENT_KEPT; /* it was, and is left together with the others */
    }
    assembly->state = TS_ASSEMBLY_WHOLE;
    state->open_count--;
    state->shared.assembled++;
    collect(assembly, collected);
    return TS_FRAGMENT_LAST;
}

void ts_assembly_leave(struct ts_fast *fast, struct ts_assembly *assembly)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; i < assembly->count; i++) {
        const struct ts_piece *piece = &assembly->pieces[i];

        ts_fast_leave(fast, assembly->memory + piece->at, piece->length, 0, piece->order);
    }
    remember(fast, assembly->key);
    fast->frames_fast -= assembly->count;
    if (assembly->state == TS_ASSEMBLY_OPEN)
        state->open_count--;
    if (assembly->path)
        assembly->path->socket->held = state->call;
    assembly->state = TS_ASSEMBLY_LEFT;
}

void ts_assembly_orphan(struct ts_fast *fast, const struct ts_udp_path *path)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; state->open_count && i < TS_UDP_ASSEMBLIES; i++) {
        struct ts_assembly *assembly = state->assemblies[i];

        if (assembly && assembly->state == TS_ASSEMBLY_OPEN && assembly->path == path) {
            assembly->path = NULL;
            assembly->deadline = -TS_NEVER;
            remember(fast, assembly->key);
        }
    }
}

/* Leave those whose time is over at `now`. */
static void expire(struct ts_fast *fast, double now)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; state->open_count && i < TS_UDP_ASSEMBLIES; i++) {
        struct ts_assembly *assembly = state->assemblies[i];

        if (assembly && assembly->state == TS_ASSEMBLY_OPEN && assembly->deadline <= now)
            ts_assembly_leave(fast, assembly);
    }
}

void ts_udp_expire(struct ts_fast *fast)
{
    expire(fast, fast->now);
}

void ts_udp_leave_fragments(struct ts_fast *fast)
{
    fast->frame_count = 0;
    expire(fast, TS_NEVER);
}

double ts_udp_deadline(const struct ts_fast *fast)
{
    const struct ts_udp_state *state = ts_udp_state_of(fast);
    double deadline = TS_NEVER;
    uint32_t i;

    for (i = 0; state->open_count && i < TS_UDP_ASSEMBLIES; i++) {
        const struct ts_assembly *assembly = state->assemblies[i];

        if (assembly && assembly->state == TS_ASSEMBLY_OPEN && assembly->deadline < deadline)
            deadline = assembly->deadline;
    }
    return deadline;
}

void ts_assembly_reset(struct ts_fast *fast)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; i < TS_UDP_ASSEMBLIES && state->assemblies[i]; i++)
        if (state->assemblies[i]->state == TS_ASSEMBLY_LEFT)
            state->assemblies[i]->state = TS_ASSEMBLY_FREE;
}

void ts_assembly_free(struct ts_fast *fast)
{
    struct ts_udp_state *state = ts_udp_state_of(fast);
    uint32_t i;

    for (i = 0; i < TS_UDP_ASSEMBLIES; i++)
        free(state->assemblies[i]);
}
