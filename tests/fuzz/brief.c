/*
 * Brief connections under a program: the input is read as SYNs and segments of the guest, what the hosts do, what
 * Python decides, and time. The hosts are the other ends of socket pairs that stand in for what is dialled.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "fast_brief.h"

#include "device.h"
#include "faults.h"

#include <errno.h>
#include <poll.h>

#define DOORS 4

static const uint32_t amounts[] = {0, 1, 100, 1448, 5000, 20000, 65415};
static const uint32_t windows[] = {65535, 1000, 100, 1, 0, 20, 512, 30000};
static const double waits[] = {0, 0.0005, 0.001, 0.01, 0.02, 0.04, 0.3, 1, 100};
static const int errors[] = {EAGAIN, EINTR, EPIPE, ECONNRESET, ENOBUFS, EINPROGRESS, EINPROGRESS, ECONNREFUSED};
static const uint8_t options[20] = {2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7};

struct world {
    struct ts_fast *fast;
    int guest;
    double now;
    uint64_t accepted, ended, adopted; /* of those that were accepted */
    int64_t send_limit, keep_limit, receive_limit;
};

static uint8_t scratch[TS_FAST_FRAME + 100000];

static void open_door(struct world *world, struct input *input)
{
    struct ts_fast *fast = world->fast;
    uint32_t how = take8(input), id = how % DOORS;
    struct shape shape = {.l2 = fast->l2, .family = how & 4 ? 6 : 4, .ttl = 64, .id = id};
    struct ts_door *door;
    struct ts_flow *model;
    uint32_t i;

    faults.allocation = how & 128 ? 1 : 0;
    door = how & 128 ? NULL : ts_door_new();
    faults.allocation = 0;
    if (!door)
        return;
    model = &door->model;
    model->family = (uint8_t)shape.family;
    i = (uint32_t)put_key(scratch, shape.family, id);
    memcpy(model->address, scratch, i - 4);
    memcpy(model->ports + 2, scratch + i - 2, 2);
    memcpy(model->mac, guest_mac, 6);
    model->link_length = fast->l2 ? TS_ETHERNET : 0;
    model->head_length = model->link_length + (shape.family == 4 ? 20 : 40);
    put_headers(scratch, &shape);
    memcpy(model->head, scratch, model->head_length);
    memcpy(model->head, guest_mac, fast->l2 ? 6 : 0);
    model->pseudo_sum = plain_pseudo(model->head + model->link_length, TS_PROTOCOL_TCP, 0);
    model->local_port = 80;
    model->mss = how & 8 ? 1448 : 0; /* which cannot be */
    model->cwnd = 14480;
    model->rcv_buf = model->rcv_initial = how & 16 ? 65535 : 1000;
    model->rcv_mss = 536;
    model->rcv_shift = 7;
    model->srtt = -1;
    model->rto = 1;
    model->min_rtt = TS_NEVER;
    model->rto_at = model->deadline = model->armed = TS_NEVER;
    model->ack_deadline = model->probe_deadline = TS_NEVER;
    model->rtt_sample = model->unlimited_at = -1;
    model->timer = TS_TIMER_RTO;
    model->fd = -1;
    model->read_size = 4096;
    model->train = 65535;
    model->send_floor = 65536;
    model->send_most = 200000;
    door->target_length = shape.family == 4 ? 16 : how & 32 ? 28 : 29;
    memcpy(door->target, scratch, 28);
    door->guest_mss = 1460;
    door->path_mss = 1460;
    i = fast->briefs->door_count;
    if (ts_door_open(fast, door))
        CHECK(fast->briefs->door_count == i);
    else
        CHECK(ts_door_find(fast, shape.family, model->address, model->ports) == door);
}

static void close_doors(struct world *world, uint32_t how)
{
    struct ts_fast *fast = world->fast;
    uint32_t i;

    for (i = 0; i < TS_BRIEF_DOORS; i++)
        if (fast->briefs->doors[i] && (how & 1 || i % 2))
            ts_door_close(fast, fast->briefs->doors[i]);
}

/* The flow whose number the input has, or NULL. */
static struct ts_brief *pick(struct world *world, struct input *input)
{
    uint32_t count = take8(input) % 8;
    struct ts_brief *brief = world->fast->briefs->oldest;

    while (brief && count--)
        brief = brief->newer ? brief->newer : world->fast->briefs->oldest;
    return brief;
}

static void give(struct world *world, struct input *input, const struct shape *shape, uint32_t header, uint32_t how)
{
    uint32_t length = header + shape->size;

    memset(scratch, 0, TS_FAST_VNET);
    if (how & 1)
        patch(input, scratch + TS_FAST_VNET, header);
    put_checksums(scratch + TS_FAST_VNET, length, shape);
    if (how & 2)
        scratch[0] = TS_SYN; /* verified by the device */
    if (how & 4)
        length -= take8(input) % length;
    send(world->guest, scratch, TS_FAST_VNET + length, MSG_NOSIGNAL);
}

static void guest_asks(struct world *world, struct input *input)
{
    uint32_t how = take8(input), odd = take8(input), header;
    struct shape shape = {.l2 = world->fast->l2, .ttl = 64, .flags = TS_SYN, .window = 65535, .id = how % DOORS};
    uint8_t *frame = scratch + TS_FAST_VNET, *tcp;

    shape.family = how & 4 ? 6 : 4;
    shape.size = 8; /* of options, which 32 bytes of header do not hold */
    shape.seq = odd & 64 ? 0xfffffff0u : 1000;
    header = (uint32_t)put_headers(frame, &shape);
    tcp = frame + header - 32;
    ts_put16(tcp, 40000 + (how >> 4));
    tcp[12] = 40 << 2;
    memcpy(tcp + 20, options, 20);
    if (odd & 8)
        tcp[20 + take8(input) % 20] = (uint8_t)take8(input);
    if (odd & 16)
        tcp[13] = (uint8_t)take8(input);
    give(world, input, &shape, header, odd);
}

static void guest_sends(struct world *world, struct input *input)
{
    static const uint8_t flags[] = {TS_ACK, TS_ACK | TS_PSH, TS_ACK | TS_FIN, TS_ACK | TS_FIN, 4, TS_SYN, 0xff, TS_ACK};
    struct ts_brief *brief = pick(world, input);
    uint32_t how = take8(input), odd = take8(input), header;
    struct shape shape = {.l2 = world->fast->l2, .ttl = 64, .window = 512};
    uint8_t *frame = scratch + TS_FAST_VNET;

    if (!brief)
        return;
    shape.family = brief->flow.family;
    shape.id = brief->flow.address[shape.family == 4 ? 7 : 31];
    shape.flags = PICK(input, flags);
    shape.size = how & 1 ? PICK(input, amounts) : 0;
    if (shape.size > 65483)
        shape.size = 65483;
    shape.seq = brief->flow.rcv_nxt;
    shape.ack = how & 2 ? brief->flow.snd_una : brief->flow.snd_nxt;
    shape.stamp = brief->flow.ts_recent + (how >> 7);
    if (how & 4)
        shape.window = PICK(input, windows);
    if (how & 8)
        shape.seq += take8(input) - 3;
    if (how & 16)
        shape.ack += take8(input) - 3;
    if (how & 32)
        shape.echo = ts_flow_stamp(&brief->flow, world->now) - take8(input);
    header = (uint32_t)put_headers(frame, &shape);
    memcpy(frame + header - 32, brief->flow.ports, 2);
    fill_content(frame + header, shape.seq, shape.size);
    give(world, input, &shape, header, odd);
}

static void host_acts(struct input *input)
{
    uint32_t which = take8(input), what = take8(input);
    int *end;

    if (!faults.host_count)
        return;
    end = &faults.hosts[which % faults.host_count];
    switch (what % 4) {
    case 0:
        send(*end, scratch, PICK(input, amounts), MSG_NOSIGNAL | MSG_DONTWAIT);
        break;
    case 1:
        recv(*end, scratch, PICK(input, amounts), MSG_DONTWAIT);
        break;
    case 2:
        shutdown(*end, what & 4 ? SHUT_WR : SHUT_RD);
        break;
    default:
        close(*end);
        *end = faults.hosts[--faults.host_count];
    }
}

/* As `BriefFlows.take` does. */
static void adopt(struct world *world, struct ts_flow *flow)
{
    struct ts_fast *fast = world->fast;
    int fd = flow->fd;

    world->adopted += flow->phase != TS_CONNECTING;
    ts_fast_remove(fast, flow);
    CHECK(!ts_fast_find(fast, flow->address, flow->family, flow->ports));
    fast->receive_free += ts_flow_readable(flow);
    ts_flow_clear(fast, flow);
    ts_flow_free(fast, flow);
    if (fd >= 0)
        CHECK(!close(fd));
}

static void decide(struct world *world, uint32_t how)
{
    struct ts_fast *fast = world->fast;
    uint32_t i = 0;

    fast->device_errno = 0;
    while (i < fast->report_count) {
        CHECK(fast->reports[i]->is_brief && fast->reports[i]->report == TS_REPORT_RETURN);
        if (how & 1)
            adopt(world, fast->reports[i]);
        else
            i++;
    }
}

static void set_fault(struct input *input)
{
    int error = PICK(input, errors);

    switch (take8(input) % 9) {
    case 0:
        faults.allocation = 1 + take8(input) % 8;
        break;
    case 1:
        faults.write = error;
        break;
    case 2:
        faults.send = error;
        break;
    case 3:
        faults.receive = error;
        break;
    case 4:
        faults.socket = error;
        break;
    case 5:
        faults.watch = error;
        break;
    case 6:
        faults.error = error;
        break;
    case 7:
        faults.itself = 1;
        break;
    default:
        faults.connect = error;
    }
}

static void claim(struct world *world, struct input *input)
{
    uint32_t how = take8(input);
    uint8_t key[36];
    int family = how & 4 ? 6 : 4;
    size_t size = put_key(key, family, how % DOORS) - 4;

    ts_put16(key + size, 40000 + (how >> 4));
    ts_brief_claim(world->fast, family, key, key + size, 1);
    ts_brief_claim(world->fast, family, key, key + size, how & 8 ? -1 : 1);
}

static void check_world(struct world *world)
{
    const struct ts_fast *fast = world->fast;
    const struct ts_briefs *briefs = fast->briefs;
    struct ts_brief_past *past = &world->fast->briefs->past;
    const struct ts_brief *brief, *older = NULL;
    uint32_t count = 0, descriptors = 0, waiting = 0, i, doors = 0;

    for (brief = briefs->oldest; brief; brief = brief->newer) {
        const struct ts_flow *flow = &brief->flow;

        CHECK(brief->older == older && flow->is_brief);
        CHECK(ts_fast_find(fast, flow->address, flow->family, flow->ports) == flow);
        CHECK(flow->fd < 0 ? flow->fin_queued : fast->by_fd[flow->fd] == flow);
        CHECK(flow->phase != TS_LAST_ACK || flow->fin_queued);
        CHECK(flow->snd_nxt - flow->snd_una <= flow->out.length + 1);
        CHECK(flow->reason != TS_KEPT || flow->deadline == TS_NEVER || flow->deadline >= briefs->due);
        descriptors += flow->fd >= 0;
        waiting += flow->phase != TS_CONNECTING;
        older = brief;
        count++;
    }
    CHECK(briefs->newest == older && briefs->count == count && fast->flow_count == count);
    CHECK(briefs->descriptors == descriptors && count <= TS_BRIEF_MOST);
    world->accepted += past->accepted;
    world->ended += past->ended;
    memset(past, 0, sizeof *past);
    CHECK(world->accepted == world->ended + world->adopted + waiting);
    for (i = 0; i < TS_BRIEF_DOORS; i++)
        doors += briefs->doors[i] != NULL;
    CHECK(briefs->door_count == doors);
}

static void operate(struct world *world, struct input *input)
{
    struct ts_fast *fast = world->fast;
    struct ts_brief *brief;
    uint32_t how;

    switch (take8(input) % 20) {
    case 0:
        open_door(world, input);
        break;
    case 1:
    case 2:
    case 3:
        guest_asks(world, input);
        break;
    case 4:
    case 5:
    case 6:
    case 7:
        guest_sends(world, input);
        break;
    case 8:
    case 9:
        host_acts(input);
        break;
    case 10:
        while (recv(world->guest, scratch, sizeof scratch, 0) > 0)
            ;
        break;
    case 11:
        world->now += PICK(input, waits);
        break;
    case 12:
        set_fault(input);
        break;
    case 13:
        claim(world, input);
        break;
    case 14:
        close_doors(world, take8(input));
        break;
    case 15:
        brief = pick(world, input);
        if (brief)
            adopt(world, &brief->flow);
        break;
    case 16:
        decide(world, take8(input));
        break;
    case 17:
        fast->briefs->most = take8(input) % 12;
        break;
    case 18:
        fast->fixed_now = world->now;
        ts_fast_flush(fast);
        break;
    default:
        how = take8(input);
        fast->fixed_now = world->now;
        ts_fast_run(fast, 0, TS_NEVER, how % 16);
        if (how & 16)
            ts_fast_flush(fast);
    }
}

static void open_world(struct world *world, struct input *input)
{
    static const uint8_t secret[40] = {1, 2, 3};
    uint32_t how = take8(input);
    struct ts_fast *fast;

    memset(world, 0, sizeof *world);
    memset(&faults, 0, sizeof faults);
    faults.allocation = how & 128 ? 1 + take8(input) % 5 : 0;
    fast = ts_fast_new(take32(input));
    faults.allocation = 0;
    if (!fast)
        fast = ts_fast_new(7);
    CHECK(fast);
    world->fast = fast;
    world->guest = open_device(fast, how & 1, 1 << 20);
    world->now = 1000;
    fast->delayed_ack = 0.04;
    fast->read_minimum = 1024;
    fast->read_maximum = 65536;
    fast->resume = 32768;
    fast->receive_share = 3;
    world->send_limit = fast->send_free = (int64_t)(how >> 3 & 15) * 2 * TS_FAST_PAGE;
    world->keep_limit = fast->keep_free = 1 << 20;
    world->receive_limit = fast->receive_free = how & 2 ? 1 << 20 : 4000;
    fast->briefs->patience = 0.5;
    fast->briefs->sizing_round = 0.01;
    fast->briefs->sizing_shortest = 0.001;
    fast->briefs->sizing_longest = 1;
    fast->briefs->sizing_memory = 10;
    fast->briefs->most = 12;
    ts_brief_set_secret(fast, secret, how & 4 ? 40 : 16);
}

/* Each descriptor is closed once, as the other ends see. */
static void close_world(struct world *world)
{
    struct ts_fast *fast = world->fast;
    struct pollfd end;

    while (fast->briefs->oldest)
        adopt(world, &fast->briefs->oldest->flow);
    check_world(world);
    CHECK(fast->send_free == world->send_limit && fast->keep_free == world->keep_limit);
    CHECK(fast->receive_free == world->receive_limit && !fast->flow_count);
    CHECK(!fast->marked_count && !fast->report_count && ts_fast_deadline(fast) == TS_NEVER);
    close_device(fast, world->guest);
    while (faults.host_count) {
        end.fd = faults.hosts[--faults.host_count];
        end.events = 0;
        CHECK(poll(&end, 1, 0) == 1 && end.revents & POLLHUP);
        close(end.fd);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct world world;

    open_world(&world, &input);
    while (input.left) {
        operate(&world, &input);
        check_world(&world);
    }
    close_world(&world);
    return 0;
}
