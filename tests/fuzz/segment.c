/* ts_segment on trains, with patches: what is cut has right headers, and together the payload of the train. */
#include "fuzz.h"

static const uint32_t sizes[] = {0, 1, 999, 1000, 1001, 5000, 65440};
static const uint32_t gso_sizes[] = {1000, 999, 1448, 65535, 65536, 0, 7};
static const uint32_t types[] = {1, 4, 5, 0, 3};

/* Frame `i` of those that were cut, `size` bytes of payload behind `header`. */
static void check_frame(const uint8_t *frame, size_t header, size_t size, int l2, const uint8_t *train, uint32_t start)
{
    size_t base = l2 ? 14 : 0, l4;
    const uint8_t *ip = frame + base;
    uint32_t protocol;

    if (ip[0] >> 4 == 4) {
        l4 = base + (size_t)(ip[0] & 15) * 4;
        protocol = ip[9];
        CHECK(plain_sum(ip, l4 - base, 0) == 0xffff);
        CHECK(ts_get16(ip + 2) == header + size - base);
    } else {
        l4 = base + 40;
        protocol = ip[6];
        CHECK(ts_get16(ip + 4) == header + size - l4);
    }
    CHECK(plain_sum(frame + l4, header + size - l4, plain_pseudo(ip, protocol, header + size - l4)) == 0xffff);
    if (protocol == TS_PROTOCOL_TCP)
        CHECK(ts_get32(frame + l4 + 4) == ts_get32(train + l4 + 4) + start);
    else
        CHECK(ts_get16(frame + l4 + 4) == header + size - l4 && ts_get16(frame + l4 + 6));
    CHECK(!memcmp(frame + header, train + header + start, size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t frame[LARGEST_HEADERS + 65440];
    struct input input = {data, size};
    uint32_t how = take8(&input), gso_size = PICK(&input, gso_sizes), type = PICK(&input, types), i;
    struct shape shape = {.l2 = how & 1, .family = how & 2 ? 6 : 4, .udp = how >> 2 & 1, .ttl = 64, .flags = 0xff};
    size_t header, length, capacity, used = 0;
    uint8_t *train, *out;
    int64_t answer;

    shape.size = PICK(&input, sizes);
    header = put_headers(frame, &shape);
    length = header + shape.size;
    fill_content(frame + header, 0, shape.size);
    patch(&input, frame, header);
    if (how & 8)
        length = take16(&input) % (length + 1);
    if (how & 16) { /* anything */
        for (length = 0; input.left && length < sizeof frame; length++)
            frame[length] = (uint8_t)take8(&input);
    }
    train = exactly(length);
    memcpy(train, frame, length);
    capacity = gso_size ? length + (length / gso_size + 1) * (14 + 60 + 60) : length;
    if (how & 32)
        capacity = take16(&input) % (capacity + 1);
    out = exactly(capacity);
    answer = ts_segment(train, length, how & 1, gso_size, type, 0, out, capacity);
    if (answer < 0) {
        CHECK(answer >= TS_NO_ROOM && (answer != TS_NO_ROOM || how & 32));
    } else {
        uint32_t count = (uint32_t)answer, start = 0;

        header = (size_t)(answer >> 32);
        CHECK(count && header <= length && count * header + length - header <= capacity);
        for (i = 0; i < count; i++) {
            size_t rest = length - header - start, chunk = rest < gso_size ? rest : gso_size;

            CHECK(i == count - 1 ? chunk == rest : chunk == gso_size);
            check_frame(out + used, header, chunk, how & 1, train, start);
            used += header + chunk;
            start += (uint32_t)chunk;
        }
    }
    release(out, capacity);
    release(train, length);
    return 0;
}
