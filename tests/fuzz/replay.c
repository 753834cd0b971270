/* In place of libFuzzer: runs the target on the files that are named, for compilers that have no fuzzer. */
#include "fuzz.h"

int main(int count, char **names)
{
    int i;

    for (i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        uint8_t *data;
        long size;

        CHECK(file && !fseek(file, 0, SEEK_END) && (size = ftell(file)) >= 0);
        rewind(file);
        data = exactly((size_t)size);
        CHECK(fread(data, 1, (size_t)size, file) == (size_t)size);
        fclose(file);
        LLVMFuzzerTestOneInput(data, (size_t)size);
        release(data, (size_t)size);
    }
    return 0;
}
