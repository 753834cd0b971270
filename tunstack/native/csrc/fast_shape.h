/*
 * A shaped link: a pipeline between the device and the fast path for each direction.
 *
 * Theory of operation. Frames of the device go into `up` as they are read, cut to wire size, and are looked at when
 * they have left it, as if the device had them only then. What is sent goes into `down` and to the device when it
 * has left that. Both pipelines are there as long as the link is shaped; one of them may have no stage.
 *
 * Bounds: those of the pipelines; TS_SHAPE_READ frames are read in a round, and none while some that have left
 * `up` wait for Python or for sockets. Nothing blocks.
 */
#ifndef TUNSTACK_FAST_SHAPE_H
#define TUNSTACK_FAST_SHAPE_H

#include "fastpath.h"
#include "pipeline.h"

#include <sys/types.h>

#define TS_SHAPE_READ 64

struct ts_shape {
    /* set by Python, whose they are */
    struct ts_pipeline *up, *down;

    uint64_t bad; /* packets that do not agree with their virtio-net header; Python resets it */

    /* inside */
    uint8_t l2;
    uint8_t *train, *cut;
};

/* The link of `fast` is shaped from now on; NULL without memory. */
struct ts_shape *ts_shape_open(struct ts_fast *fast, struct ts_pipeline *up, struct ts_pipeline *down);
/* And no longer; the pipelines stay. */
void ts_shape_close(struct ts_fast *fast);
/* A packet of Python's, virtio-net header first, on its way down. */
void ts_shape_put(struct ts_shape *shape, const uint8_t *data, uint32_t length, double now);

/* A packet on its way up. */
void ts_shape_send_up(struct ts_shape *shape, const uint8_t *data, uint32_t length, double now);

/* Between the files. */
double ts_shape_deadline(const struct ts_shape *shape);
/* As read(2) of a TAP into TS_FAST_FRAME bytes, of what has left `up`. */
ssize_t ts_shape_read(struct ts_shape *shape, uint8_t *data, double now);
/* `up` holds nothing that should have been looked at. */
int ts_shape_is_served(const struct ts_shape *shape);
void ts_shape_send_down(struct ts_shape *shape, const struct iovec *views, int count, double now);
/* Let the device have what has left `down`. */
void ts_shape_depart(struct ts_fast *fast);

#endif
