/* What is between device and flows on a shaped link; fast_shape.h states the theory of operation. */
#define _GNU_SOURCE
#include "fast_shape.h"
#include "fast_wire.h"

#include <stdlib.h>

#define CUT_CAPACITY (65535 + 14 + (TS_MOST_FRAMES + 1) * TS_MOST_HEADERS)

_Static_assert(TS_PIPELINE_GAP == TS_FAST_VNET, "a packet has room for a virtio-net header");

struct ts_shape *ts_shape_open(struct ts_fast *fast, struct ts_pipeline *up, struct ts_pipeline *down)
{
    struct ts_shape *shape = calloc(1, sizeof *shape);

    if (!shape)
        return NULL;
    shape->up = up;
    shape->down = down;
    shape->l2 = fast->l2;
    shape->train = malloc(TS_FAST_FRAME);
    shape->cut = malloc(CUT_CAPACITY);
    ts_shape_close(fast);
    fast->shape = shape;
    if (shape->train && shape->cut)
        return shape;
    ts_shape_close(fast);
    return NULL;
}

void ts_shape_close(struct ts_fast *fast)
{
    struct ts_shape *shape = fast->shape;

    if (!shape)
        return;
    fast->shape = NULL;
    free(shape->train);
    free(shape->cut);
    free(shape);
}

/* The wire frames of the packet in `views`; EINVAL: it is none. */
static int send_wire(struct ts_shape *shape, struct ts_pipeline *pipeline, const struct iovec *views, int count,
                     double now)
{
    const uint8_t *vnet = views->iov_base;
    uint32_t length = ts_wire_length(views, count), header, room, i, rest, size;
    struct ts_packet *packet;
    uint16_t gso_size;
    const uint8_t *at = shape->cut;
    int64_t cut;

    if (!length)
        return EINVAL;
    if (!ts_wire_train(vnet)) {
        packet = ts_packet_new(length);
        if (!packet) {
            ts_pipeline_lost(pipeline);
            return 0;
        }
        ts_wire_gather(packet->data, views, count);
        ts_wire_complete(vnet, packet->data + TS_FAST_VNET, length);
        memset(packet->data, 0, TS_FAST_VNET);
        ts_pipeline_push(pipeline, packet, now);
        return 0;
    }
    memcpy(&gso_size, vnet + 4, 2);
    room = ts_wire_room(length, gso_size, 0);
    if (!room)
        return EINVAL;
    ts_wire_gather(shape->train, views, count);
    cut = ts_segment(shape->train + TS_FAST_VNET, length, shape->l2, gso_size, ts_wire_train(vnet), 0, shape->cut,
                     room);
    if (cut < 0)
        return EINVAL;
    header = (uint32_t)(cut >> 32);
    rest = length - header;
    for (i = 0; i < (uint32_t)cut; i++) {
        size = rest < gso_size ? rest : gso_size;
        ts_pipeline_send(pipeline, at, header + size, now);
        at += header + size;
        rest -= size;
    }
    return 0;
}

static void send_or_count(struct ts_shape *shape, struct ts_pipeline *pipeline, const struct iovec *views, int count,
                          double now)
{
    if (send_wire(shape, pipeline, views, count, now))
        shape->bad++;
}

void ts_shape_send_up(struct ts_shape *shape, const uint8_t *data, uint32_t length, double now)
{
    struct iovec view = ts_wire_view(data, length);

    send_or_count(shape, shape->up, &view, 1, now);
}

void ts_shape_send_down(struct ts_shape *shape, const struct iovec *views, int count, double now)
{
    send_or_count(shape, shape->down, views, count, now);
}

void ts_shape_put(struct ts_shape *shape, const uint8_t *data, uint32_t length, double now)
{
    struct iovec view = ts_wire_view(data, length);

    send_or_count(shape, shape->down, &view, 1, now);
}

double ts_shape_deadline(const struct ts_shape *shape)
{
    double up = ts_pipeline_deadline(shape->up), down = ts_pipeline_deadline(shape->down);

    return up < down ? up : down;
}

int ts_shape_is_served(const struct ts_shape *shape)
{
    return !shape->up->passed.first;
}

ssize_t ts_shape_read(struct ts_shape *shape, uint8_t *data, double now)
{
    struct ts_packet *packet = ts_pipeline_pop(shape->up, now);
    ssize_t length;

    if (!packet) {
        errno = EAGAIN;
        return -1;
    }
    length = TS_FAST_VNET + (ssize_t)packet->length;
    memcpy(data, packet->data, (size_t)length);
    ts_packet_free(packet);
    return length;
}

void ts_shape_depart(struct ts_fast *fast)
{
    struct ts_packet *packet;
    struct iovec view;

    while ((packet = ts_pipeline_pop(fast->shape->down, fast->now))) {
        view = ts_wire_view(packet->data, TS_FAST_VNET + packet->length);
        ts_fast_write(fast, &view, 1);
        ts_packet_free(packet);
    }
}
