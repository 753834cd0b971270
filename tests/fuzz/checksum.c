/* ts_ones_sum beside the sum as RFC 1071 tells it, at every alignment. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint64_t initial = (uint64_t)take32(&input) << 32 | take32(&input), carry = initial;
    size_t shift = take8(&input) % 8, length = input.left;
    uint8_t *copy = exactly(shift + length);
    uint32_t answer, expected;

    while (carry >> 16)
        carry = (carry & 0xffff) + (carry >> 16);
    memcpy(copy + shift, input.data, length);
    answer = ts_ones_sum(copy + shift, length, initial);
    expected = plain_sum(copy + shift, length, (uint32_t)carry);
    CHECK(answer == expected);
    CHECK(answer || (!initial && !plain_sum(copy + shift, length, 0)));
    release(copy, shift + length);
    return 0;
}
