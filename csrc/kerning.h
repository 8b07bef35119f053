// Kerning pairs of one font: (left glyph, right glyph) -> correction of the pen in 26.6 pixels.
//
// An open-addressed table, filled once and then only read, so threads need no lock. Key 0 marks an
// empty place: the pair (0, 0) would be two .notdef glyphs, which no font kerns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace deepsynth {

class KernTable {
public:
    explicit KernTable(size_t pairs) {
        size_t places = 16;
        while (places < 2 * pairs) places *= 2;
        keys_.assign(places, 0);
        values_.assign(places, 0);
    }

    void add(uint16_t left, uint16_t right, int value) {
        const size_t i = place(key(left, right));
        keys_[i] = key(left, right);
        values_[i] = value;
    }

    int find(uint16_t left, uint16_t right) const {
        const size_t i = place(key(left, right));
        return keys_[i] ? values_[i] : 0;
    }

private:
    static uint32_t key(uint16_t left, uint16_t right) { return uint32_t{left} << 16 | right; }

    size_t place(uint32_t key) const {  // where the key is, or the empty place it would take
        size_t i = (key * 0x9E3779B1u >> 7) & (keys_.size() - 1);
        while (keys_[i] && keys_[i] != key) i = (i + 1) & (keys_.size() - 1);
        return i;
    }

    std::vector<uint32_t> keys_;
    std::vector<int32_t> values_;
};

}  // namespace deepsynth
