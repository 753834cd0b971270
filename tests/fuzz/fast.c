/*
 * The fast path under a program: the input is read as operations on flows, the guest, the hosts and time. Flows
 * are sound when they are offered (`struct ts_flow` as tunstack.tcp.lease fills it in), all else is arbitrary.
 */
#define _GNU_SOURCE
#define TUNSTACK_NO_FAULTS
#include "device.h"
#include "fast.h"
#include "faults.h"

#include <errno.h>
#include <fcntl.h>

static const uint32_t segment_sizes[] = {1448, 1, 2, 536, 8948, 65483};
static const uint32_t windows[] = {65535, 100000, 1000, 100, 1, 0, 1 << 20, 20};
static const uint32_t amounts[] = {0, 1, 100, 1448, 3000, 16384, 16385, 40000, 70000, 65415};
static const uint32_t starts[] = {0, 0xffffff00u, 0x7fffff00u, 0xffff0000u};
static const double waits[] = {0, 0.001, 0.02, 0.04, 0.3, 2, 100};
static const int errors[] = {EAGAIN, EINTR, EIO, EBADFD, EINVAL, EPIPE, ENOBUFS};

static uint8_t scratch[TS_FAST_FRAME + 100000];

static struct slot *pick_slot(struct world *world, struct input *input)
{
    return &world->slots[take8(input) % SLOTS];
}

static int fill_queue(struct world *world, struct ts_flow *flow, int in, uint32_t seq, uint32_t size)
{
    fill_content(scratch, seq, size);
    return ts_flow_fill(world->fast, flow, in, scratch, size);
}

/* What `lease.fill` copies; 0, or -1 without memory. */
static int fill_flow(struct world *world, struct input *input, struct ts_flow *flow, uint32_t id)
{
    struct ts_fast *fast = world->fast;
    uint32_t how = take8(input), queued, flight, readable, records, i;
    struct shape shape = {.l2 = fast->l2, .family = how & 1 ? 6 : 4, .ttl = 64, .id = id};

    flow->family = (uint8_t)shape.family;
    i = (uint32_t)put_key(scratch, shape.family, id);
    memcpy(flow->address, scratch, i - 4);
    memcpy(flow->ports, scratch + i - 4, 4);
    memcpy(flow->mac, guest_mac, 6);
    flow->link_length = fast->l2 ? TS_ETHERNET : 0;
    flow->head_length = flow->link_length + (shape.family == 4 ? 20 : 40);
    put_headers(scratch, &shape);
    memcpy(flow->head, scratch, flow->head_length);
    memcpy(flow->head, guest_mac, fast->l2 ? 6 : 0);
    flow->pseudo_sum = plain_pseudo(flow->head + flow->link_length, TS_PROTOCOL_TCP, 0);
    flow->local_port = 80;
    flow->remote_port = (uint16_t)(40000 + id);

    flow->mss = PICK(input, segment_sizes);
    flow->snd_una = PICK(input, starts);
    queued = PICK(input, amounts);
    flight = how & 2 ? queued : 0;
    flow->snd_nxt = flow->snd_una + flight;
    flow->snd_wnd = flow->snd_max_wnd = PICK(input, windows);
    flow->snd_wl1 = flow->rcv_nxt = flow->last_ack_sent = PICK(input, starts);
    flow->snd_wl2 = flow->snd_una;
    flow->rcv_adv = flow->rcv_nxt + PICK(input, windows);
    flow->rcv_buf = PICK(input, windows) + 65535;
    flow->rcv_initial = 65535;
    flow->cwnd = PICK(input, windows);
    flow->rcv_mss = PICK(input, segment_sizes);
    flow->ts_recent = PICK(input, starts);
    flow->snd_shift = how >> 2 & 1 ? 14 : 0;
    flow->rcv_shift = how >> 3 & 1 ? 14 : 2;
    flow->ecn = how >> 4 & 1;
    flow->sizing_due = world->now + PICK(input, waits);
    flow->srtt = how & 32 ? -1 : 0.01;
    flow->rttvar = 0.005;
    flow->rto = 0.2;
    flow->min_rtt = TS_NEVER;
    flow->rto_at = flow->deadline = flow->armed = TS_NEVER;
    flow->ack_deadline = how & 64 ? world->now + PICK(input, waits) : TS_NEVER;
    flow->ack_pending = how & 64 ? 1 : 0;
    flow->rtt_sample = flow->unlimited_at = -1;
    flow->interest = EPOLLIN;
    flow->read_size = 4096;
    flow->train = PICK(input, amounts);
    flow->send_floor = PICK(input, amounts);
    flow->send_most = 200000;
    if (flight) {
        flow->timer = TS_TIMER_RTO;
        flow->rto_at = flow->deadline = world->now + 0.2;
    }
    records = flight ? 1 + take8(input) % 4 : 0;
    if (how & 128)
        records *= 256;
    if (records > flight)
        records = flight;
    for (i = 0; i < records; i++)
        if (ts_flow_sent(fast, flow, flow->snd_una + (uint32_t)((uint64_t)flight * i / records),
                         flow->snd_una + (uint32_t)((uint64_t)flight * (i + 1) / records), world->now))
            return -1;
    readable = PICK(input, amounts);
    if (fill_queue(world, flow, 0, flow->snd_una, queued) ||
        fill_queue(world, flow, 1, flow->rcv_nxt - readable, readable))
        return -1;
    if (readable)
        flow->interest |= EPOLLOUT;
    fast->receive_free -= readable; /* the account is charged already */
    return 0;
}

/* A flow that cannot be, sometimes: 1 if it must be refused. */
static int make_unsound(struct input *input, struct ts_flow *flow)
{
    switch (take8(input)) {
    case 1:
        flow->link_length = take8(input);
        return flow->link_length != (flow->head_length == 20 || flow->head_length == 40 ? 0 : TS_ETHERNET);
    case 2:
        flow->head_length = take8(input);
        return flow->head_length > TS_FAST_HEAD;
    case 3:
        flow->mss = 0;
        return 1;
    case 4:
        flow->rcv_shift = 15;
        return 1;
    case 5:
        flow->snd_nxt = flow->snd_una + flow->out.length + 1;
        return 1;
    default:
        return 0;
    }
}

static void offer(struct world *world, struct input *input)
{
    struct slot *slot = pick_slot(world, input);
    struct ts_fast *fast = world->fast;
    uint32_t id = take8(input) % 8, readable, i;
    struct ts_flow *flow;
    int ends[2], is_taken = 0, fails;

    if (slot->flow || !(flow = ts_flow_new()))
        return;
    if (fill_flow(world, input, flow, id)) {
        ts_flow_free(fast, flow);
        return;
    }
    readable = ts_flow_readable(flow);
    for (i = 0; i < SLOTS; i++)
        if (world->slots[i].flow && world->slots[i].id == id && world->slots[i].flow->family == flow->family)
            is_taken = 1;
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
    i = 4096;
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &i, sizeof i);
    flow->fd = ends[0];
    if (!take8(input)) /* a descriptor that is taken, if there is one */
        for (i = 0; i < SLOTS; i++)
            if (world->slots[i].flow) {
                flow->fd = world->slots[i].ours;
                is_taken = 1;
            }
    is_taken |= make_unsound(input, flow);
    fails = ts_fast_offer(fast, flow);
    CHECK(!is_taken || fails);
    if (fails) {
        fast->receive_free += readable;
        ts_flow_free(fast, flow);
        close(ends[0]);
        close(ends[1]);
        return;
    }
    watch(world->fast, ends[0], flow->interest);
    memset(slot, 0, sizeof *slot);
    slot->flow = flow;
    slot->id = id;
    slot->ours = ends[0];
    slot->host = ends[1];
    slot->write_seq = flow->snd_una + flow->out.length;
    slot->read_seq = flow->rcv_nxt - readable;
    slot->guest_seq = flow->rcv_nxt;
    slot->seen_adv = flow->rcv_adv;
    slot->most_sent = (flow->sent_count > TS_FAST_RECORDS ? flow->sent_count : TS_FAST_RECORDS) + 1;
}

static void host_reads(struct slot *slot, uint32_t most)
{
    ssize_t got;

    if (!slot->flow || slot->host < 0)
        return;
    got = recv(slot->host, scratch, most, 0);
    if (got > 0) {
        CHECK(is_content(scratch, slot->read_seq, (uint32_t)got));
        slot->read_seq += (uint32_t)got;
    }
}

static void host_writes(struct slot *slot, uint32_t most)
{
    ssize_t sent;

    if (!slot->flow || slot->host < 0)
        return;
    fill_content(scratch, slot->write_seq, most);
    sent = send(slot->host, scratch, most, MSG_NOSIGNAL);
    if (sent > 0)
        slot->write_seq += (uint32_t)sent;
}

static void close_host(struct slot *slot)
{
    if (slot->flow && slot->host >= 0) {
        close(slot->host);
        slot->host = -1;
    }
}

/* As `FastFlows.take_back` does. */
static void take_back(struct world *world, struct slot *slot)
{
    struct ts_fast *fast = world->fast;
    struct ts_flow *flow = slot->flow;
    uint8_t *out, *in;

    if (!flow)
        return;
    ts_fast_remove(fast, flow);
    CHECK(!ts_fast_find(fast, flow->address, flow->family, flow->ports));
    copy_queues(flow, &out, &in);
    check_queues(slot, out, in);
    release(out, flow->out.length);
    release(in, ts_flow_readable(flow));
    if (slot->is_frozen) {
        release(slot->out, flow->out.length);
        release(slot->in, slot->in_length);
    }
    fast->receive_free += ts_flow_readable(flow);
    ts_flow_clear(fast, flow);
    CHECK(!flow->out.first && !flow->in.first && !flow->sent_first && !flow->sent_count);
    ts_flow_free(fast, flow);
    close(slot->ours);
    if (slot->host >= 0)
        close(slot->host);
    slot->flow = NULL;
}

static void guest_sends(struct world *world, struct input *input)
{
    static const uint32_t flags[] = {TS_ACK, TS_ACK, TS_ACK, TS_ACK | TS_PSH, TS_ACK | TS_FIN, 4, 2, 0xff};
    struct slot *slot = pick_slot(world, input);
    struct ts_flow *flow = slot->flow;
    uint32_t how = take8(input), which = take8(input), header, length;
    struct shape shape = {.l2 = world->fast->l2, .ttl = 64, .flags = TS_ACK, .window = 65535, .id = slot->id};
    uint8_t *frame = scratch + TS_FAST_VNET, *tcp;
    uint16_t number;

    if (!flow)
        return;
    shape.family = flow->family;
    shape.size = how & 1 ? PICK(input, amounts) : 0;
    if (shape.size > 65483)
        shape.size = 65483;
    shape.seq = how & 2 ? flow->rcv_nxt : slot->guest_seq;
    shape.stamp = flow->ts_recent;
    if ((which & 3) == 1)
        shape.ack = flow->snd_nxt;
    else if ((which & 3) == 2)
        shape.ack = flow->snd_una + take16(input) % (flow->snd_nxt - flow->snd_una + 1);
    else
        shape.ack = flow->snd_una;
    if (how & 4)
        shape.window = PICK(input, windows) & 0xffff;
    if (how & 8) { /* something odd */
        shape.flags = (uint8_t)PICK(input, flags);
        shape.seq += take8(input) & 1 ? take32(input) : 0;
        shape.ack += take8(input) & 1 ? take32(input) : 0;
        shape.stamp += take8(input) - 1;
        shape.mark = take8(input) & 3;
        shape.ttl = take8(input) ? 64 : 1;
    }
    header = (uint32_t)put_headers(frame, &shape);
    length = header + shape.size;
    memset(scratch, 0, TS_FAST_VNET);
    if (how & 16)
        patch(input, frame, header);
    tcp = frame + header - 32;
    fill_content(frame + header, ts_get32(tcp + 4), shape.size);
    put_checksums(frame, length, &shape);
    if ((how & 96) == 96) {
        tcp[16] ^= 1; /* a wrong checksum */
    } else if (how & 32) {
        number = (uint16_t)(header - 32);
        scratch[0] = 1;
        memcpy(scratch + 6, &number, 2);
        scratch[8] = 16;
    } else if (how & 64) {
        scratch[0] = 2;
    }
    if (which & 4) {
        number = (uint16_t)(which & 8 ? take16(input) : flow->mss);
        scratch[1] = (uint8_t)((flow->family == 4 ? 1 : 4) | (which & 16 ? 0x80 : 0) | (which & 32 ? 8 : 0));
        memcpy(scratch + 4, &number, 2);
    }
    if (how & 128)
        patch(input, scratch, TS_FAST_VNET);
    if (which & 64)
        length -= take8(input) % length;
    if (send(world->guest, scratch, TS_FAST_VNET + length, MSG_NOSIGNAL) > 0)
        slot->guest_seq = shape.seq + shape.size;
}

/* Bytes without a meaning; too few to carry payload of a flow. */
static void guest_babbles(struct world *world, struct input *input)
{
    uint32_t length = 1 + take8(input) % 80, i;

    memset(scratch, 0, TS_FAST_FRAME);
    for (i = 0; i < length; i++)
        scratch[i] = (uint8_t)take8(input);
    send(world->guest, scratch, take8(input) == 1 ? TS_FAST_FRAME : length, MSG_NOSIGNAL);
}

static void guest_receives(struct world *world)
{
    ssize_t length;

    while ((length = recv(world->guest, scratch, sizeof scratch, 0)) > 0)
        check_sent(world, scratch, (size_t)length);
}

static void check_refused(const struct world *world)
{
    uint32_t at = 0, count = 0, length;
    const uint8_t *data;

    for (; (data = next_refused(world->fast, &at, &length)); count++)
        check_sent(world, data, length);
    CHECK(count == world->fast->refused_count);
}

/* As `FastFlows.decide` does; what is returned may stay for a while. */
static void decide(struct world *world, struct input *input)
{
    struct ts_fast *fast = world->fast;
    uint32_t how = take8(input), i;

    check_refused(world);
    fast->device_errno = 0;
    for (i = 0; i < SLOTS; i++) {
        struct ts_flow *flow = world->slots[i].flow;

        if (!flow || !flow->is_listed)
            continue;
        if (flow->report & TS_REPORT_RETURN) {
            if (how & 1)
                take_back(world, &world->slots[i]);
            continue;
        }
        if (flow->report & TS_REPORT_ACKS)
            flow->cwnd = how & 2 ? PICK(input, windows) : flow->cwnd + flow->acked;
        if (flow->report & TS_REPORT_IDLE)
            flow->idle_told = 1;
        if (flow->report & TS_REPORT_SIZE) {
            flow->sizing_due = world->now + 1;
            flow->rcv_buf = how & 4 ? 2 * (flow->rcv_buf & 0xffffff) : flow->rcv_buf;
        }
        if (flow->report & TS_REPORT_TIMER && flow->deadline < flow->armed)
            flow->armed = flow->deadline;
    }
}

static void set_fault(struct input *input)
{
    int error = PICK(input, errors);

    switch (take8(input) % 5) {
    case 0:
        faults.allocation = 1 + take8(input) % 16;
        break;
    case 1:
        faults.write = error;
        break;
    case 2:
        faults.read = error;
        break;
    case 3:
        faults.send = error;
        break;
    default:
        faults.receive = error;
    }
}

/* More or less memory for all. */
static void move_budgets(struct world *world, struct input *input)
{
    int64_t pages = (int64_t)take8(input) - 128, bytes = ((int64_t)take16(input) - 32768) * 16;

    world->fast->send_free += pages * TS_FAST_PAGE;
    world->send_limit += pages * TS_FAST_PAGE;
    world->fast->receive_free += bytes;
    world->receive_limit += bytes;
}

/* The descriptor of a socket goes away behind the back of the flow. */
static void break_socket(struct world *world, struct slot *slot, uint32_t how)
{
    int null;

    if (!slot->flow)
        return;
    if (how & 1) {
        epoll_ctl(world->fast->epoll_fd, EPOLL_CTL_DEL, slot->ours, NULL);
        return;
    }
    null = open("/dev/null", O_RDWR);
    CHECK(null >= 0 && dup2(null, slot->ours) == slot->ours);
    close(null);
}

static void call(struct world *world, struct input *input, uint32_t what)
{
    struct ts_fast *fast = world->fast;
    uint32_t how;

    fast->fixed_now = world->now;
    switch (what) {
    case 0:
        ts_fast_input(fast, 0);
        break;
    case 1:
        ts_fast_flush(fast);
        break;
    default:
        how = take8(input);
        if (how & 1) {
            world->now += 1e-6; /* so that rounding does not turn time back */
            faults.now = world->now - fast->clock_offset;
            fast->fixed_now = -1;
        }
        ts_fast_run(fast, how & 2 ? 1e-6 : 0, how & 4 ? world->now + 0.01 : TS_NEVER, how >> 4);
        world->now = fast->now > world->now ? fast->now : world->now;
    }
    faults.read = 0;
    check_call(world);
}

static void operate(struct world *world, struct input *input)
{
    struct slot *slot;
    uint32_t what = take8(input) % 24;

    switch (what) {
    case 0:
    case 1:
        offer(world, input);
        break;
    case 2:
    case 3:
    case 4:
    case 5:
        guest_sends(world, input);
        break;
    case 6:
        guest_babbles(world, input);
        break;
    case 7:
        guest_receives(world);
        break;
    case 8:
    case 9:
        slot = pick_slot(world, input);
        host_writes(slot, PICK(input, amounts));
        break;
    case 10:
    case 11:
        slot = pick_slot(world, input);
        host_reads(slot, PICK(input, amounts));
        break;
    case 12:
        close_host(pick_slot(world, input));
        break;
    case 13:
        slot = pick_slot(world, input);
        if (slot->flow && slot->host >= 0)
            shutdown(slot->host, take8(input) & 1 ? SHUT_WR : SHUT_RD);
        break;
    case 14:
        world->now += PICK(input, waits);
        break;
    case 15:
        decide(world, input);
        break;
    case 16:
    case 17:
    case 18:
        call(world, input, what - 16);
        break;
    case 19:
        take_back(world, pick_slot(world, input));
        break;
    case 20:
        slot = pick_slot(world, input);
        if (slot->flow)
            ts_fast_mark(world->fast, slot->flow);
        break;
    case 21:
        set_fault(input);
        break;
    case 22:
        move_budgets(world, input);
        break;
    default:
        what = take8(input);
        if (what & 2)
            world->fast->hold ^= 1;
        else
            break_socket(world, pick_slot(world, input), what);
    }
}

static void open_world(struct world *world, struct input *input)
{
    static const uint32_t sizes[] = {4096, 1024, 65536};
    uint32_t how = take8(input);
    struct ts_fast *fast;

    memset(world, 0, sizeof *world);
    memset(&faults, 0, sizeof faults);
    faults.allocation = how & 128 ? 1 + take8(input) % 3 : 0;
    fast = ts_fast_new(take32(input));
    if (!fast) {
        CHECK(how & 128);
        fast = ts_fast_new(7);
    }
    CHECK(fast);
    world->fast = fast;
    faults.allocation = 0;
    world->guest = open_device(fast, how & 1, 1 << 20);
    world->now = 1000;
    fast->clock_offset = 5;
    fast->delayed_ack = 0.04;
    fast->read_minimum = 1024;
    fast->read_maximum = PICK(input, sizes);
    fast->resume = PICK(input, sizes);
    fast->receive_share = how >> 1 & 3;
    world->send_limit = fast->send_free = (int64_t)(how >> 3 & 15) * 2 * TS_FAST_PAGE;
    fast->short_path = how >> 7;
    fast->send_reserve = world->send_limit / 2;
    world->keep_limit = fast->keep_free = 1 << 20;
    world->receive_limit = fast->receive_free = (int64_t)PICK(input, amounts) * 4;
}

static void close_world(struct world *world)
{
    struct ts_fast *fast = world->fast;
    uint32_t i;

    for (i = 0; i < SLOTS; i++)
        take_back(world, &world->slots[i]);
    CHECK(fast->send_free == world->send_limit && fast->keep_free == world->keep_limit);
    CHECK(fast->receive_free == world->receive_limit && !fast->flow_count);
    CHECK(!fast->marked_count && !fast->report_count && ts_fast_deadline(fast) == TS_NEVER);
    close_device(fast, world->guest);
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
