// What device.cuh has machine instructions for.

inline void multiply(int (&d)[4], const uint32_t *a, const uint32_t *b, int words, int c) {
    struct Operands {
        uint32_t a[4], b[2];
    } mine = {};
    for (int i = 0; i < words * 2; i++) mine.a[i] = a[i];
    for (int i = 0; i < words; i++) mine.b[i] = b[i];
    struct Result {
        int d[4];
    };
    Result result = emulation::together(mine, [=](Operands *lanes) {
        Result result;
        for (int i = 0; i < 4; i++) {
            int row = i / 2, g = emulation::lane() / 4, column = emulation::lane() % 4 * 2 + i % 2;
            int sum = c;
            for (int t = 0; t < 4; t++) {
                for (int word = 0; word < words; word++) {
                    for (int byte = 0; byte < 4; byte++) {
                        int weight = static_cast<int8_t>(lanes[g * 4 + t].a[word * 2 + row] >> (8 * byte));
                        int level = static_cast<int8_t>(lanes[column * 4 + t].b[word] >> (8 * byte));
                        sum += weight * level;
                    }
                }
            }
            result.d[i] = sum;
        }
        return result;
    });
    for (int i = 0; i < 4; i++) d[i] = result.d[i];
}

inline void multiply_32(int (&d)[4], const uint32_t (&a)[4], uint2 b, int c) {
    const uint32_t words[2] = {b.x, b.y};
    multiply(d, a, words, 2, c);
}

inline void multiply_16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int c) {
    const uint32_t words[2] = {a0, a1};
    multiply(d, words, &b, 1, c);
}

inline int multiply_4(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return c;
}

inline void copy_16(void *shared, const void *global) { emulation::copy(shared, global, 16); }
template <int AT> void copy_16_behind(void *shared, const void *global) {
    copy_16(static_cast<uint8_t *>(shared) + AT, static_cast<const uint8_t *>(global) + AT);
}
inline void copy_16_cached(void *shared, const void *global) { emulation::copy(shared, global, 16); }
inline void copy_commit() { emulation::commit(); }
template <int PENDING> void copy_wait() { emulation::wait_copies(PENDING); }
inline void barrier_arrive(int id) {
#ifdef ANDON_HAND_OVER_SYNC
    emulation::wait(id, 64);
#else
    emulation::arrive(id, 64);
#endif
}
inline void barrier_wait(int id) { emulation::wait(id, 64); }
template <class T> T *kept_place(T *place) { return place; }
inline uint8_t *shared_memory() { return emulation::shared(); }
inline void launch_next() {}
inline void wait_for_kernel_before() {}
