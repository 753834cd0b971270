/* ts_coalesce on batches that are made to merge, with patches: what is merged holds what was absorbed. */
#include "fuzz.h"

#define MOST 160 /* more than TS_COALESCE_FLOWS */

static const uint32_t sizes[] = {10, 10, 10, 9, 11, 1, 0, 1400, 20000};
static const uint8_t controls[] = {TS_ACK, TS_ACK, TS_ACK, TS_ACK | TS_PSH, 0, TS_ACK | TS_FIN, TS_ACK | TS_CWR};
static const uint32_t limits[] = {65535, 65535, 100, 3000, 0};

struct batch {
    uint8_t *frames[MOST];
    uint32_t lengths[MOST];
    uint8_t flags[MOST];
    uint32_t count;
};

static void add(struct batch *batch, const uint8_t *frame, size_t length, uint8_t flags)
{
    batch->frames[batch->count] = exactly(length);
    memcpy(batch->frames[batch->count], frame, length);
    batch->lengths[batch->count] = (uint32_t)length;
    batch->flags[batch->count++] = flags;
}

static void make(struct input *input, int l2, struct batch *batch)
{
    static uint8_t frame[LARGEST_HEADERS + 20000];
    uint32_t next[256] = {0};

    while (input->left && batch->count < MOST) {
        uint32_t how = take8(input), i;
        struct shape shape = {.l2 = l2, .family = how & 1 ? 6 : 4, .ttl = 64, .window = 500};
        size_t header, length;

        if ((how & 0x70) == 0x70) { /* anything */
            length = take8(input) % sizeof frame;
            for (i = 0; i < length; i++)
                frame[i] = (uint8_t)take8(input);
            add(batch, frame, length, how >> 7);
            continue;
        }
        shape.id = how & 2 ? take8(input) : 0;
        shape.udp = (how & 0x70) == 0x60;
        shape.size = PICK(input, sizes);
        shape.flags = how & 4 ? PICK(input, controls) : TS_ACK;
        shape.seq = next[shape.id] - 30;
        next[shape.id] += shape.size;
        header = put_headers(frame, &shape);
        length = header + shape.size;
        fill_content(frame + header, shape.seq, shape.size);
        if (how & 8) {
            patch(input, frame, header);
            if (how & 0x80)
                length = take16(input) % (length + 1);
            else
                put_checksums(frame, length, &shape);
        } else {
            put_checksums(frame, length, &shape);
        }
        add(batch, frame, length, how >> 7 ? TS_TRUSTED : take8(input) == 1 ? TS_OPAQUE : 0);
    }
}

/* Row `head` is the first of a train: its frame is as long as it says and has the payload of all its members. */
static uint32_t check_train(const struct batch *batch, const struct ts_row *rows, uint32_t head, int l2,
                            uint32_t limit, const uint8_t *out)
{
    const uint8_t *merged = out + rows[head].offset, *ip = merged + (l2 ? 14 : 0);
    uint32_t length = (uint32_t)rows[head].length, at = (uint32_t)rows[head].payload, member = head, absorbed = 0;
    uint32_t packet = length - (l2 ? 14 : 0);

    CHECK(packet <= limit && ip[0] >> 4 == rows[head].version);
    CHECK(packet == (ip[0] >> 4 == 4 ? ts_get16(ip + 2) : 40 + ts_get16(ip + 4)));
    CHECK(ip[0] >> 4 == 6 || plain_sum(ip, 20, 0) == 0xffff);
    do {
        uint32_t size = (uint32_t)rows[member].payload_length, next = (uint32_t)rows[member].next;

        CHECK(member == head || rows[member].length == -1);
        CHECK(size && size <= (uint32_t)rows[head].gso_size && at + size <= length);
        CHECK(!next || (next > member && size == (uint32_t)rows[head].gso_size));
        CHECK(!memcmp(merged + at, batch->frames[member] + rows[member].payload, size));
        at += size;
        absorbed += member != head;
        member = next;
    } while (member);
    CHECK(at == length && absorbed);
    return absorbed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct batch batch = {.count = 0};
    struct ts_row rows[MOST];
    int l2 = take8(&input) & 1;
    uint32_t limit = PICK(&input, limits), i, found = 0;
    size_t capacity = 0;
    int64_t absorbed;
    uint8_t *out;

    make(&input, l2, &batch);
    for (i = 0; i < batch.count; i++)
        capacity += batch.lengths[i];
    out = exactly(capacity);
    memset(rows, 0, sizeof rows);
    absorbed = ts_coalesce((const uint8_t *const *)batch.frames, batch.lengths, batch.flags, batch.count, l2, limit,
                           out, capacity, (int32_t *)rows);
    CHECK(absorbed >= 0);
    for (i = 0; i < batch.count; i++)
        if (rows[i].length > 0)
            found += check_train(&batch, rows, i, l2, limit, out);
    CHECK(found == absorbed);
    for (i = 0; i < batch.count; i++)
        found -= rows[i].length == -1;
    CHECK(!found);
    if (absorbed) { /* one byte less than what was used is too little */
        size_t used = 0;
        uint8_t *small;

        for (i = 0; i < batch.count; i++)
            if (rows[i].length > 0)
                used += (size_t)rows[i].length;
        CHECK(used <= capacity);
        small = exactly(used - 1);
        memset(rows, 0, sizeof rows);
        CHECK(ts_coalesce((const uint8_t *const *)batch.frames, batch.lengths, batch.flags, batch.count, l2, limit,
                          small, used - 1, (int32_t *)rows) == -1);
        release(small, used - 1);
    }
    release(out, capacity);
    for (i = 0; i < batch.count; i++)
        release(batch.frames[i], batch.lengths[i]);
    return 0;
}
