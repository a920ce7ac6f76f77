// SPDX-License-Identifier: Apache-2.0
#include "CChaPoly.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define VECTOR __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512ifma")))
#define INLINE static inline __attribute__((always_inline)) VECTOR

int cchapoly_is_possible(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6) != 0xe6) return 0;  // the system keeps XMM, YMM, masks, ZMM
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    unsigned wanted = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 30 | 1u << 31;  // F, DQ, IFMA, BW, VL
    return (b & wanted) == wanted;
}

// MARK: ChaCha20, RFC 8439 section 2.3

struct state { uint32_t key[8], nonce[3]; };

static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};

// All ones for the bytes of a 64-byte block that exist when `left` remain.
INLINE __mmask64 byte_mask(size_t left) { return left >= 64 ? ~0ull : (1ull << left) - 1; }

INLINE void xor_block(__m512i stream, const uint8_t *input, uint8_t *output, size_t left) {
    if (left >= 64) {
        _mm512_storeu_si512(output, _mm512_xor_si512(stream, _mm512_loadu_si512(input)));
    } else if (left > 0) {
        __mmask64 mask = byte_mask(left);
        _mm512_mask_storeu_epi8(output, mask, _mm512_xor_si512(stream, _mm512_maskz_loadu_epi8(mask, input)));
    }
}

// What sixteen blocks begin with, column by column: word i of all blocks in register i.
INLINE void columns_of(const struct state *s, uint32_t counter, __m512i begin[16]) {
    for (int i = 0; i < 4; i++) begin[i] = _mm512_set1_epi32((int)constants[i]);
    for (int i = 0; i < 8; i++) begin[4 + i] = _mm512_set1_epi32((int)s->key[i]);
    begin[12] = _mm512_add_epi32(_mm512_set1_epi32((int)counter),
                                 _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int i = 0; i < 3; i++) begin[13 + i] = _mm512_set1_epi32((int)s->nonce[i]);
}

// What four blocks begin with, row by row: row i of all blocks in register i.
INLINE void rows_of(const struct state *s, uint32_t counter, __m512i begin[4]) {
    begin[0] = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)constants));
    begin[1] = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)s->key));
    begin[2] = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(s->key + 4)));
    begin[3] = _mm512_add_epi32(
        _mm512_broadcast_i32x4(_mm_setr_epi32((int)counter, (int)s->nonce[0], (int)s->nonce[1], (int)s->nonce[2])),
        _mm512_setr_epi32(0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0));
}

#define STEP(a, b, d, bits) do { \
    a = _mm512_add_epi32(a, b); d = _mm512_rol_epi32(_mm512_xor_si512(d, a), bits); } while (0)
#define QUARTER(a, b, c, d) do { \
    STEP(a, b, d, 16); STEP(c, d, b, 12); STEP(a, b, d, 8); STEP(c, d, b, 7); } while (0)

// One round of all that there is: columns v, and r[0], r[1] of the rows.
#define ROUND(b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3) do { \
    if (columns) { QUARTER(v[0], v[b0], v[c0], v[d0]); QUARTER(v[1], v[b1], v[c1], v[d1]); } \
    if (rows > 0) QUARTER(r[0][0], r[0][1], r[0][2], r[0][3]); \
    if (columns) { QUARTER(v[2], v[b2], v[c2], v[d2]); QUARTER(v[3], v[b3], v[c3], v[d3]); } \
    if (rows > 1) QUARTER(r[1][0], r[1][1], r[1][2], r[1][3]); } while (0)

// Rows to diagonals and back.
#define TURN(first, last) do { for (int i = 0; i < rows; i++) { \
    r[i][1] = _mm512_shuffle_epi32(r[i][1], first); r[i][2] = _mm512_shuffle_epi32(r[i][2], 0x4e); \
    r[i][3] = _mm512_shuffle_epi32(r[i][3], last); } } while (0)

// Words of sixteen blocks to blocks: 32-bit and 64-bit units within 128-bit lanes, then the lanes.
INLINE void transpose(const __m512i v[16], __m512i block[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(v[i], v[i + 1]), b = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]), d = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // t[4 g + j], lane l: words 4 g ... 4 g + 3 of block 4 l + j.
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x44), b = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x44);
        __m512i c = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xee), d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xee);
        block[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        block[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        block[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        block[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

// Uses `count` blocks. If `first` is not null, block 0 goes there. Bytes beyond `length` are not touched.
INLINE void emit(const __m512i *block, int count, uint8_t *first, const uint8_t *input, uint8_t *output,
                 size_t length) {
    size_t skipped = first ? 64 : 0;
    if (first) _mm512_storeu_si512(first, block[0]);
    else xor_block(block[0], input, output, length);
    // Where block 0 would lie: all others are at constant places from there.
    uintptr_t from = (uintptr_t)input - skipped, to = (uintptr_t)output - skipped;
    length += skipped;
    if (length >= (size_t)count * 64) {
        for (int i = 1; i < count; i++)
            _mm512_storeu_si512((void *)(to + 64 * i),
                                _mm512_xor_si512(block[i], _mm512_loadu_si512((const void *)(from + 64 * i))));
        return;
    }
    _Alignas(64) uint8_t kept[16 * 64];
    for (int i = 1; i < count; i++) _mm512_store_si512(kept + 64 * i, block[i]);
    for (size_t done = 64; done < length; done += 64)
        xor_block(_mm512_load_si512(kept + done), (const uint8_t *)(from + done), (uint8_t *)(to + done),
                  length - done);
}

// `columns` times sixteen blocks (none or one) and `rows` times four from `counter`. Both at the same time cost little
// more than either, which would mostly wait for its own results.
INLINE void some_blocks(const struct state *s, uint32_t counter, int columns, int rows, uint8_t *first,
                        const uint8_t *input, uint8_t *output, size_t length) {
    __m512i v[16], r[2][4];
    uint32_t behind = counter + (uint32_t)columns * 16;
    if (columns) columns_of(s, counter, v);
    for (int i = 0; i < rows; i++) rows_of(s, behind + (uint32_t)i * 4, r[i]);
    for (int round = 0; round < 10; round++) {
        ROUND(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        TURN(0x39, 0x93);
        ROUND(5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14);
        TURN(0x93, 0x39);
    }
    if (columns) {
        __m512i begin[16], block[16];
        columns_of(s, counter, begin);
        for (int i = 0; i < 16; i++) v[i] = _mm512_add_epi32(v[i], begin[i]);
        transpose(v, block);
        emit(block, 16, first, input, output, length);
        size_t done = first ? 15 * 64 : 16 * 64;
        if (length <= done) return;
        input += done;
        output += done;
        length -= done;
        first = 0;
    }
    __m512i block[8];
    for (int i = 0; i < rows; i++) {
        __m512i begin[4];
        rows_of(s, behind + (uint32_t)i * 4, begin);
        for (int j = 0; j < 4; j++) r[i][j] = _mm512_add_epi32(r[i][j], begin[j]);
        __m512i a = _mm512_shuffle_i32x4(r[i][0], r[i][1], 0x44), b = _mm512_shuffle_i32x4(r[i][2], r[i][3], 0x44);
        __m512i c = _mm512_shuffle_i32x4(r[i][0], r[i][1], 0xee), d = _mm512_shuffle_i32x4(r[i][2], r[i][3], 0xee);
        block[4 * i] = _mm512_shuffle_i32x4(a, b, 0x88);
        block[4 * i + 1] = _mm512_shuffle_i32x4(a, b, 0xdd);
        block[4 * i + 2] = _mm512_shuffle_i32x4(c, d, 0x88);
        block[4 * i + 3] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    emit(block, 4 * rows, first, input, output, length);
}

INLINE void stream(const struct state *s, uint32_t counter, uint8_t *first, const uint8_t *input, uint8_t *output,
                   size_t length) {
    for (;;) {
        size_t blocks = (length + 63) / 64 + (first != 0);
        if (blocks <= 4) return some_blocks(s, counter, 0, 1, first, input, output, length);
        if (blocks <= 8) return some_blocks(s, counter, 0, 2, first, input, output, length);
        if (blocks <= 16) return some_blocks(s, counter, 1, 0, first, input, output, length);
        some_blocks(s, counter, 1, 2, first, input, output, length);
        if (blocks <= 24) return;
        size_t done = first ? 23 * 64 : 24 * 64;
        input += done;
        output += done;
        length -= done;
        counter += 24;
        first = 0;
    }
}

// MARK: Poly1305, RFC 8439 section 2.5, in limbs of 44, 44 and 42 bits

struct limbs { __m512i l0, l1, l2; };

#define MASK44 0xfffffffffffull
#define MASK42 0x3ffffffffffull

// a * b mod 2^130 - 5 in every lane. Limbs of `a` are below 2^46, of `b` below 2^45, of the product below 2^44 + 2^15.
INLINE struct limbs multiply(struct limbs a, struct limbs b, __m512i b1x20, __m512i b2x20) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i lo0 = _mm512_madd52lo_epu64(zero, a.l0, b.l0), hi0 = _mm512_madd52hi_epu64(zero, a.l0, b.l0);
    __m512i lo1 = _mm512_madd52lo_epu64(zero, a.l0, b.l1), hi1 = _mm512_madd52hi_epu64(zero, a.l0, b.l1);
    __m512i lo2 = _mm512_madd52lo_epu64(zero, a.l0, b.l2), hi2 = _mm512_madd52hi_epu64(zero, a.l0, b.l2);
    lo0 = _mm512_madd52lo_epu64(lo0, a.l1, b2x20), hi0 = _mm512_madd52hi_epu64(hi0, a.l1, b2x20);
    lo1 = _mm512_madd52lo_epu64(lo1, a.l1, b.l0), hi1 = _mm512_madd52hi_epu64(hi1, a.l1, b.l0);
    lo2 = _mm512_madd52lo_epu64(lo2, a.l1, b.l1), hi2 = _mm512_madd52hi_epu64(hi2, a.l1, b.l1);
    lo0 = _mm512_madd52lo_epu64(lo0, a.l2, b1x20), hi0 = _mm512_madd52hi_epu64(hi0, a.l2, b1x20);
    lo1 = _mm512_madd52lo_epu64(lo1, a.l2, b2x20), hi1 = _mm512_madd52hi_epu64(hi1, a.l2, b2x20);
    lo2 = _mm512_madd52lo_epu64(lo2, a.l2, b.l0), hi2 = _mm512_madd52hi_epu64(hi2, a.l2, b.l0);
    // High halves weigh 2^52 of their limb: 2^8 of the next one; behind the last limb 2^10 of 2^130, which is 5.
    const __m512i mask44 = _mm512_set1_epi64(MASK44), mask42 = _mm512_set1_epi64(MASK42);
    lo0 = _mm512_add_epi64(lo0, _mm512_add_epi64(_mm512_slli_epi64(hi2, 10), _mm512_slli_epi64(hi2, 12)));
    lo1 = _mm512_add_epi64(lo1, _mm512_slli_epi64(hi0, 8));
    lo2 = _mm512_add_epi64(lo2, _mm512_slli_epi64(hi1, 8));
    // Each limb's carry at once: what is left above 44 bits is little enough for the next product.
    __m512i carry = _mm512_srli_epi64(lo2, 42);
    struct limbs result;
    result.l0 = _mm512_add_epi64(_mm512_add_epi64(_mm512_and_si512(lo0, mask44), carry), _mm512_slli_epi64(carry, 2));
    result.l1 = _mm512_add_epi64(_mm512_and_si512(lo1, mask44), _mm512_srli_epi64(lo0, 44));
    result.l2 = _mm512_add_epi64(_mm512_and_si512(lo2, mask42), _mm512_srli_epi64(lo1, 44));
    return result;
}

INLINE __m512i times20(__m512i value) {
    return _mm512_add_epi64(_mm512_slli_epi64(value, 4), _mm512_slli_epi64(value, 2));
}

INLINE struct limbs product(struct limbs a, struct limbs b) {
    return multiply(a, b, times20(b.l1), times20(b.l2));
}

INLINE struct limbs permuted(__m512i order, struct limbs a, struct limbs b) {
    struct limbs result = {_mm512_permutex2var_epi64(a.l0, order, b.l0), _mm512_permutex2var_epi64(a.l1, order, b.l1),
                           _mm512_permutex2var_epi64(a.l2, order, b.l2)};
    return result;
}

// Eight blocks at `base`, of which the bytes from `from` to below `to` exist; the others are zero. Blocks before `from`
// add nothing. With `is_last`, block 7 is the length block.
INLINE struct limbs load(uintptr_t base, unsigned from, unsigned to, int is_last, uint64_t length) {
    __mmask64 low = byte_mask(to) & ~byte_mask(from);
    __mmask64 high = to > 64 ? byte_mask(to - 64) & ~byte_mask(from > 64 ? from - 64 : 0) : 0;
    __m512i a = _mm512_maskz_loadu_epi8(low, (const void *)base);
    __m512i b = _mm512_maskz_loadu_epi8(high, (const void *)(base + 64));
    if (is_last) b = _mm512_inserti64x2(b, _mm_set_epi64x((long long)length, 0), 3);
    // Order of the blocks in the lanes: 0 4 1 5 2 6 3 7.
    __m512i words0 = _mm512_unpacklo_epi64(a, b), words1 = _mm512_unpackhi_epi64(a, b);
    const __m512i mask44 = _mm512_set1_epi64(MASK44);
    struct limbs result;
    result.l0 = _mm512_and_si512(words0, mask44);
    result.l1 = _mm512_and_si512(
        _mm512_or_si512(_mm512_srli_epi64(words0, 44), _mm512_slli_epi64(words1, 20)), mask44);
    __m512i places = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __mmask8 exists = _mm512_cmpge_epu64_mask(places, _mm512_set1_epi64(from / 16));
    result.l2 = _mm512_mask_or_epi64(_mm512_srli_epi64(words1, 24), exists, _mm512_srli_epi64(words1, 24),
                                     _mm512_set1_epi64(1ull << 40));
    return result;
}

INLINE struct limbs load_full(const uint8_t *base) {
    __m512i a = _mm512_loadu_si512(base), b = _mm512_loadu_si512(base + 64);
    __m512i words0 = _mm512_unpacklo_epi64(a, b), words1 = _mm512_unpackhi_epi64(a, b);
    const __m512i mask44 = _mm512_set1_epi64(MASK44);
    struct limbs result;
    result.l0 = _mm512_and_si512(words0, mask44);
    result.l1 = _mm512_and_si512(
        _mm512_or_si512(_mm512_srli_epi64(words0, 44), _mm512_slli_epi64(words1, 20)), mask44);
    result.l2 = _mm512_or_si512(_mm512_srli_epi64(words1, 24), _mm512_set1_epi64(1ull << 40));
    return result;
}

INLINE struct limbs sum(struct limbs a, struct limbs b) {
    struct limbs result = {_mm512_add_epi64(a.l0, b.l0), _mm512_add_epi64(a.l1, b.l1), _mm512_add_epi64(a.l2, b.l2)};
    return result;
}

// Tag over `length` bytes of ciphertext, padding and lengths, with the first 32 bytes of block 0 as the key.
INLINE void authenticate(const uint8_t one_time_key[32], const uint8_t *text, size_t length, uint8_t tag[16]) {
    uint64_t words[4];
    memcpy(words, one_time_key, 32);
    words[0] &= 0x0ffffffc0fffffffull;
    words[1] &= 0x0ffffffc0ffffffcull;
    // r in every lane, then powers: lane by lane 8 4 7 3 6 2 5 1, and r^8 in every lane.
    struct limbs r = {_mm512_set1_epi64((long long)(words[0] & MASK44)),
                      _mm512_set1_epi64((long long)((words[0] >> 44 | words[1] << 20) & MASK44)),
                      _mm512_set1_epi64((long long)(words[1] >> 24))};
    struct limbs r2 = product(r, r);
    // Even lanes r, odd lanes r^2, times r^2: r^3 and r^4.
    struct limbs r34 = product(permuted(_mm512_setr_epi64(0, 9, 0, 9, 0, 9, 0, 9), r, r2), r2);
    // r^4 r^4 r^3 r^3 r^2 r^2 r r times r^4 in even and 1 in odd lanes, by choosing.
    struct limbs low = permuted(_mm512_setr_epi64(9, 9, 8, 8, 1, 1, 0, 0),
                                permuted(_mm512_setr_epi64(0, 9, 0, 9, 0, 9, 0, 9), r, r2), r34);
    struct limbs r4 = permuted(_mm512_set1_epi64(1), r34, r34);
    struct limbs high = product(low, r4);
    const __mmask8 even = 0x55;
    struct limbs powers = {_mm512_mask_blend_epi64(even, low.l0, high.l0),
                           _mm512_mask_blend_epi64(even, low.l1, high.l1),
                           _mm512_mask_blend_epi64(even, low.l2, high.l2)};

    size_t blocks = (length + 15) / 16 + 1;
    unsigned lead = (unsigned)((8 - blocks % 8) % 8) * 16;
    struct limbs h;
    if (blocks <= 8) {
        h = load((uintptr_t)text - lead, lead, lead + (unsigned)length, 1, length);
    } else {
        struct limbs r8 = permuted(_mm512_setzero_si512(), powers, powers);
        __m512i r8l1 = times20(r8.l1), r8l2 = times20(r8.l2);
        h = load((uintptr_t)text - lead, lead, 128, 0, 0);
        text += 128 - lead;
        size_t left = length - (128 - lead);
        // At least one block more than 128 bytes: the length block ends the last eight.
        if (left > 112 + 384) {
            // Two sums, each over every other eight blocks, so that one multiplication need not wait for the other.
            struct limbs r16 = product(r8, r8), other = load_full(text);
            __m512i r16l1 = times20(r16.l1), r16l2 = times20(r16.l2);
            text += 128;
            left -= 128;
            while (left > 112 + 128) {
                h = sum(multiply(h, r16, r16l1, r16l2), load_full(text));
                other = sum(multiply(other, r16, r16l1, r16l2), load_full(text + 128));
                text += 256;
                left -= 256;
            }
            h = sum(multiply(h, r8, r8l1, r8l2), other);
        }
        while (left > 112) {
            h = sum(multiply(h, r8, r8l1, r8l2), load_full(text));
            text += 128;
            left -= 128;
        }
        h = sum(multiply(h, r8, r8l1, r8l2), load((uintptr_t)text, 0, (unsigned)left, 1, length));
    }
    h = product(h, powers);

    uint64_t h0 = (uint64_t)_mm512_reduce_add_epi64(h.l0), h1 = (uint64_t)_mm512_reduce_add_epi64(h.l1);
    uint64_t h2 = (uint64_t)_mm512_reduce_add_epi64(h.l2);
    // Fully reduced: carries twice, then h or h - p, whichever is not negative.
    for (int i = 0; i < 2; i++) {
        h1 += h0 >> 44; h0 &= MASK44;
        h2 += h1 >> 44; h1 &= MASK44;
        h0 += (h2 >> 42) * 5; h2 &= MASK42;
    }
    h1 += h0 >> 44; h0 &= MASK44;
    h2 += h1 >> 44; h1 &= MASK44;
    uint64_t g0 = h0 + 5, g1 = h1 + (g0 >> 44), g2 = h2 + (g1 >> 44);
    uint64_t take = 0 - (g2 >> 42);
    h0 = (h0 & ~take) | (g0 & MASK44 & take);
    h1 = (h1 & ~take) | (g1 & MASK44 & take);
    h2 = (h2 & ~take) | (g2 & MASK42 & take);
    uint64_t first = h0 | h1 << 44, second = h1 >> 20 | h2 << 24;
    uint64_t low_word = first + words[2];
    uint64_t high_word = second + words[3] + (low_word < first);
    memcpy(tag, &low_word, 8);
    memcpy(tag + 8, &high_word, 8);
}

// MARK: Both

INLINE void prepare(struct state *s, const uint8_t key[32], uint64_t counter) {
    memcpy(s->key, key, 32);
    s->nonce[0] = 0;
    s->nonce[1] = (uint32_t)counter;
    s->nonce[2] = (uint32_t)(counter >> 32);
}

// Key and one-time key do not stay on the stack. (The stream for the text may: it tells no more than the packet
// that lies in the caller's memory.)
INLINE void forget(struct state *s, uint8_t first[64]) {
    memset(s, 0, sizeof *s);
    memset(first, 0, 64);
    __asm__ volatile("" : : "r"(s), "r"(first) : "memory");
}

VECTOR void cchapoly_seal(const uint8_t key[32], uint64_t counter, const uint8_t *input, uint8_t *output,
                          size_t length) {
    struct state s;
    _Alignas(64) uint8_t first[64];
    prepare(&s, key, counter);
    stream(&s, 0, first, input, output, length);
    authenticate(first, output, length, output + length);
    forget(&s, first);
}

VECTOR int cchapoly_open(const uint8_t key[32], uint64_t counter, uint8_t *text, size_t length) {
    static const uint8_t zeros[23 * 64];
    struct state s;
    _Alignas(64) uint8_t first[64], kept[sizeof zeros];
    uint8_t tag[16];
    prepare(&s, key, counter);
    // The tag comes before any byte is changed: what is made together with the tag's key is kept until then.
    size_t early = length < sizeof kept ? length : sizeof kept;
    stream(&s, 0, first, zeros, kept, early);
    authenticate(first, text, length, tag);
    uint64_t is[2], should[2];
    memcpy(is, tag, 16);
    memcpy(should, text + length, 16);
    int is_right = ((is[0] ^ should[0]) | (is[1] ^ should[1])) == 0;
    if (!is_right) goto end;
    for (size_t done = 0; done < early; done += 64)
        xor_block(_mm512_load_si512(kept + done), text + done, text + done, early - done);
    if (length > early) stream(&s, 24, 0, text + early, text + early, length - early);
end:
    forget(&s, first);
    return is_right;
}

#else

int cchapoly_is_possible(void) { return 0; }
void cchapoly_seal(const uint8_t key[32], uint64_t counter, const uint8_t *input, uint8_t *output, size_t length) {
    (void)key; (void)counter; (void)input; (void)output; (void)length;
    __builtin_trap();
}
int cchapoly_open(const uint8_t key[32], uint64_t counter, uint8_t *text, size_t length) {
    (void)key; (void)counter; (void)text; (void)length;
    __builtin_trap();
}

#endif
