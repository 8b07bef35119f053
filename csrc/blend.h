// Ink on paper: the one place where ink changes a pixel.
//
// Paper is 255, ink is 0, coverage says how much of a pixel the ink hides (0..255). The exact
// composite is t = paper*(255-coverage)+128; ((t>>8)+t)>>8: paper*(255-coverage)/255, rounded.
// Two identities make it cheap: on white paper it equals 255-coverage, and without coverage it
// leaves the paper alone. So a row that is known to meet white paper is copied; one that may meet
// ink is subtracted unless ink really lies under ink, and only then is anything multiplied.
//
// A row of a glyph is stored as it looks on white paper, 255-coverage, in a multiple of 16 bytes
// padded with 255. SSE2 where the machine has it (every x86-64), else loops that say the same;
// -DDEEPSYNTH_PORTABLE forces the loops, for tests.
//
// Other greys than these are put in at the end, over the whole page (`recolour`): a glyph is stored
// once, whatever ink it is printed in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) && !defined(DEEPSYNTH_PORTABLE)
#include <emmintrin.h>
#define DEEPSYNTH_SSE2 1
#endif

namespace deepsynth {

constexpr int kRow = 16;  // bytes that one operation handles; rows of glyphs are padded to it

inline uint8_t over(unsigned paper, unsigned coverage) {
    const unsigned t = paper * (255u - coverage) + 128u;
    return static_cast<uint8_t>(((t >> 8) + t) >> 8);
}

#ifdef DEEPSYNTH_SSE2

inline __m128i load16(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

inline void store16(uint8_t* p, __m128i v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
}

inline __m128i inverted(__m128i v) { return _mm_xor_si128(v, _mm_set1_epi8(-1)); }

// The composite on white paper.
inline void copy16(uint8_t* paper, const uint8_t* row) { store16(paper, load16(row)); }

// paper -= coverage: the composite where `overlaps16` is false.
inline void subtract16(uint8_t* paper, const uint8_t* row) {
    store16(paper, _mm_sub_epi8(load16(paper), inverted(load16(row))));
}

// Does any of the 16 pixels have both ink on the paper and coverage to come?
inline bool overlaps16(const uint8_t* paper, const uint8_t* row) {
    const __m128i either = _mm_max_epu8(load16(paper), load16(row));  // 255 unless both have ink
    return _mm_movemask_epi8(_mm_cmpeq_epi8(either, _mm_set1_epi8(-1))) != 0xffff;
}

inline void over16(uint8_t* paper, const uint8_t* row) {
    const __m128i zero = _mm_setzero_si128(), half = _mm_set1_epi16(128);
    const __m128i p = load16(paper), keep = load16(row);
    __m128i lo = _mm_mullo_epi16(_mm_unpacklo_epi8(p, zero), _mm_unpacklo_epi8(keep, zero));
    __m128i hi = _mm_mullo_epi16(_mm_unpackhi_epi8(p, zero), _mm_unpackhi_epi8(keep, zero));
    lo = _mm_add_epi16(lo, half);
    hi = _mm_add_epi16(hi, half);
    // Both sums stay below 2^16: 255*255+128 = 65153, and 65153 + (65153>>8) = 65407.
    lo = _mm_srli_epi16(_mm_add_epi16(lo, _mm_srli_epi16(lo, 8)), 8);
    hi = _mm_srli_epi16(_mm_add_epi16(hi, _mm_srli_epi16(hi, 8)), 8);
    store16(paper, _mm_packus_epi16(lo, hi));
}

#else

inline void copy16(uint8_t* paper, const uint8_t* row) { std::memcpy(paper, row, kRow); }

inline void subtract16(uint8_t* paper, const uint8_t* row) {
    for (int i = 0; i < kRow; ++i) paper[i] = static_cast<uint8_t>(paper[i] - (255 - row[i]));
}

inline bool overlaps16(const uint8_t* paper, const uint8_t* row) {
    unsigned both = 0;
    for (int i = 0; i < kRow; ++i) both |= (paper[i] != 255) & (row[i] != 255);
    return both != 0;
}

inline void over16(uint8_t* paper, const uint8_t* row) {
    for (int i = 0; i < kRow; ++i) paper[i] = over(paper[i], 255u - row[i]);
}

#endif

// One padded row of `stride` bytes, whatever lies under it.
inline void blend_row(uint8_t* paper, const uint8_t* row, int stride) {
    for (int x = 0; x < stride; x += kRow) {
        if (overlaps16(paper + x, row + x)) over16(paper + x, row + x);
        else subtract16(paper + x, row + x);
    }
}

// Pixels of black on white become ink on paper: ink + (paper - ink) * v / 255, rounded. Where paper
// is the darker one, the same from its side.
inline void recolour(uint8_t* pixels, int64_t n, int ink, int paper) {
    if (ink == 0 && paper == 255) return;
    const unsigned flip = paper < ink ? 255 : 0, low = std::min(ink, paper);
    const unsigned range = std::max(ink, paper) - low;
    int64_t i = 0;
#ifdef DEEPSYNTH_SSE2
    const __m128i zero = _mm_setzero_si128(), half = _mm_set1_epi16(128);
    const __m128i fold = _mm_set1_epi16(257);
    const __m128i flips = _mm_set1_epi8(static_cast<char>(flip));
    const __m128i lows = _mm_set1_epi8(static_cast<char>(low));
    const __m128i ranges = _mm_set1_epi16(static_cast<short>(range));
    for (; i + kRow <= n; i += kRow) {
        const __m128i v = _mm_xor_si128(load16(pixels + i), flips);
        __m128i lo = _mm_add_epi16(_mm_mullo_epi16(_mm_unpacklo_epi8(v, zero), ranges), half);
        __m128i hi = _mm_add_epi16(_mm_mullo_epi16(_mm_unpackhi_epi8(v, zero), ranges), half);
        lo = _mm_mulhi_epu16(lo, fold);  // (t * 257) >> 16 is ((t >> 8) + t) >> 8
        hi = _mm_mulhi_epu16(hi, fold);
        store16(pixels + i, _mm_add_epi8(_mm_packus_epi16(lo, hi), lows));
    }
#endif
    for (; i < n; ++i)
        pixels[i] = static_cast<uint8_t>(low + over(range, 255u - (pixels[i] ^ flip)));
}

}  // namespace deepsynth
