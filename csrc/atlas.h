// The glyph atlas: everything layout and drawing must know of a character, found in two loads.
//
// A text is a sequence of units: a code point, or from kFirstComposite on a number that Python gave
// to a cluster (a base with its marks, a shaped ligature). Unit u has its Cell in page u>>8, place
// u&255. Coverage rows lie in blocks that never move, padded to kRow bytes with zeros.
//
//   Cell.rows -> [height][stride] coverage; the first row lies `top` rows above the baseline,
//                its first column `left` pixels right of the pen
//   stored box (top, height, stride) >= ink box (ink_top, ink_bottom, ink_right): glyphs that fit
//                the window (roughly ascender to descender, 16 columns) are stored with exactly its
//                height, so that a line is known to fit once and every glyph takes the same loop.
//
// Cells are only ever added: `kind` is published last, so readers without any lock see a whole cell
// or none. Adding is serialised by the caller (the binding adds under the interpreter lock).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "blend.h"
#include "kerning.h"

namespace deepsynth {

enum Kind : uint8_t {  // what layout does with a unit
    kUnresolved = 0,   // not in the atlas yet
    kPlain,            // part of a word, nothing to note
    kNoted,            // part of a word, but its position is reported (missing, invisible, ...)
    kSpace,            // a break may follow; hangs over the end of a line
    kTab,              // to the next stop; else as a space
    kNewline,          // ends the line
    kReturn,           // ends the line, together with a following line feed
    kFormFeed,         // ends the line and the page
    kMayBreak,         // no width, a break may follow
    kSoftHyphen,       // no width; a break may follow and then shows a hyphen
    kWide,             // CJK: a break may come before and after
    kInkBreak,         // visible, and a break may follow (the newline mark)
    kKinds
};

enum Flag : uint16_t {
    kNoStart = 1,    // no line may start with it (closing punctuation)
    kNoEnd = 2,      // no line may end with it (opening punctuation)
    kGlue = 4,       // no break next to it
    kJoin = 8,       // belongs to the unit before it
    kMissing = 16,   // in no font: drawn as a box
    kInvisible = 32, // draws nothing and has no width, by definition
    kUnshaped = 64,  // of a script that needs shaping, drawn without
    kPrepare = 128,  // Python must rewrite the text before it can be laid out
    kWindow = 256    // stored in exactly the window (the atlas sets it)
};
constexpr uint16_t kReported = kMissing | kInvisible | kUnshaped;

constexpr uint32_t kFirstComposite = 0x110000;
constexpr uint32_t kUnits = 0x180000;
constexpr int kPage = 256;
constexpr int kFonts = 255;

struct Cell {
    const uint8_t* rows = nullptr;
    int32_t advance = 0;  // 26.6 pixels
    int16_t left = 0, top = 0;
    uint16_t stride = 0, height = 0;
    int16_t ink_top = 0, ink_bottom = 0;  // rows above the baseline: ink in (ink_bottom, ink_top]
    int16_t ink_right = 0;                // one past the last inked column, from the pen
    uint16_t glyph = 0;                   // number in its font, for kerning
    uint16_t flags = 0;
    uint8_t font = kFonts;                // kFonts: no kerning
    std::atomic<uint8_t> kind{kUnresolved};
};
static_assert(sizeof(Cell) == 32, "a cell is half a cache line");

struct Glyph {  // what add() takes: ink of width x height, rows `pitch` bytes apart
    const uint8_t* coverage = nullptr;
    int width = 0, height = 0, pitch = 0, left = 0, top = 0;
    int advance = 0, font = kFonts, glyph = 0, kind = kPlain, flags = 0;
};

class Atlas {
public:
    // The window: `window_rows` rows, the first of them `window_top` rows above the baseline.
    Atlas(int window_top, int window_rows) : window_top_(window_top), window_rows_(window_rows) {
        if (window_top < 1 || window_top > 4096 || window_rows < 1 || window_rows > 4096)
            throw std::invalid_argument("window out of range");
        for (auto& page : pages_) page.store(blank(), std::memory_order_relaxed);
        writable_page(0);  // text of one-byte units reads this page without looking it up
    }
    Atlas(const Atlas&) = delete;
    Atlas& operator=(const Atlas&) = delete;

    const Cell* page(uint32_t number) const {
        return pages_[number].load(std::memory_order_acquire);
    }
    const Cell& at(uint32_t unit) const { return page(unit >> 8)[unit & 255]; }
    bool has(uint32_t unit) const { return at(unit).kind.load() != kUnresolved; }

    void add(uint32_t unit, const Glyph& g) {
        check(unit, g);
        if (has(unit)) return;  // another thread was first; readers may already hold this cell
        Cell& cell = writable_page(unit >> 8)[unit & 255];
        cell.advance = g.advance;
        cell.font = static_cast<uint8_t>(g.font);
        cell.glyph = static_cast<uint16_t>(g.glyph);
        cell.flags = static_cast<uint16_t>(g.flags & ~kWindow);
        if (g.width > 0 && g.height > 0) store(cell, g);
        cell.kind.store(static_cast<uint8_t>(g.kind), std::memory_order_release);
        ++size_;
    }

    // Pairs of font number `font`; must come before the first glyph of that font.
    void set_kerning(int font, std::unique_ptr<KernTable> table) {
        if (font < 0 || font >= kFonts || kerning_[font]) throw std::invalid_argument("font");
        kerning_[font] = std::move(table);
    }
    int kern(const Cell& left, const Cell& right) const {
        if (left.font != right.font || left.font >= kFonts || !kerning_[left.font]) return 0;
        return kerning_[left.font]->find(left.glyph, right.glyph);
    }

    int window_top() const { return window_top_; }
    int window_rows() const { return window_rows_; }
    size_t size() const { return size_; }
    size_t bytes() const { return blocks_.size() * kBlock + owned_.size() * kPage * sizeof(Cell); }

private:
    static constexpr size_t kBlock = 1 << 18;

    static Cell* blank() {
        static Cell page[kPage];  // shared by all atlases, never written
        return page;
    }

    Cell* writable_page(uint32_t number) {
        Cell* page = pages_[number].load(std::memory_order_relaxed);
        if (page == blank()) {
            owned_.emplace_back(new Cell[kPage]);
            page = owned_.back().get();
            pages_[number].store(page, std::memory_order_release);
        }
        return page;
    }

    static void check(uint32_t unit, const Glyph& g) {
        const int limit = 32767 - 2 * kRow;  // of an int16_t, with padding
        const auto far = [limit](int v) { return v < -limit || v > limit; };
        if (unit >= kUnits || g.kind <= kUnresolved || g.kind >= kKinds)
            throw std::invalid_argument("unit or kind out of range");
        if (far(g.width) || far(g.height) || far(g.left) || far(g.top) || far(g.left + g.width) ||
            far(g.top - g.height) || g.advance < 0 || g.advance > (1 << 24))
            throw std::invalid_argument("glyph too large");
        if (g.font < 0 || g.font > kFonts || g.glyph < 0 || g.glyph > 65535)
            throw std::invalid_argument("font or glyph number out of range");
    }

    // Copy the ink into the stored box: the window where it fits, else the ink's own rows.
    void store(Cell& cell, const Glyph& g) {
        const int below = window_top_ - window_rows_;  // first row under the window
        const bool fits = g.width <= kRow && g.top <= window_top_ && g.top - g.height >= below;
        const bool word = g.kind == kPlain || g.kind == kNoted || g.kind >= kWide;
        if (fits && word) cell.flags |= kWindow;  // others move the pen by more than an advance
        cell.left = static_cast<int16_t>(g.left);
        cell.stride = static_cast<uint16_t>((g.width + kRow - 1) / kRow * kRow);
        cell.top = static_cast<int16_t>(fits ? window_top_ : g.top);
        cell.height = static_cast<uint16_t>(fits ? window_rows_ : g.height);
        cell.ink_top = static_cast<int16_t>(g.top);
        cell.ink_bottom = static_cast<int16_t>(g.top - g.height);
        cell.ink_right = static_cast<int16_t>(g.left + g.width);
        uint8_t* rows = allocate(static_cast<size_t>(cell.stride) * cell.height);
        std::memset(rows, 255, static_cast<size_t>(cell.stride) * cell.height);
        uint8_t* first = rows + static_cast<size_t>(cell.top - g.top) * cell.stride;
        for (int y = 0; y < g.height; ++y)
            for (int x = 0; x < g.width; ++x)
                first[static_cast<size_t>(y) * cell.stride + x] = static_cast<uint8_t>(
                    255 - g.coverage[static_cast<size_t>(y) * g.pitch + x]);
        cell.rows = rows;
    }

    uint8_t* allocate(size_t bytes) {
        if (bytes > kBlock) {  // a glyph for itself, kept out of the running block
            large_.emplace_back(new uint8_t[bytes]);
            return large_.back().get();
        }
        if (blocks_.empty() || used_ + bytes > kBlock) {
            blocks_.emplace_back(new uint8_t[kBlock]);
            used_ = 0;
        }
        used_ += bytes;
        return blocks_.back().get() + used_ - bytes;
    }

    std::atomic<Cell*> pages_[kUnits / kPage];
    std::vector<std::unique_ptr<Cell[]>> owned_;
    std::vector<std::unique_ptr<uint8_t[]>> blocks_, large_;
    std::unique_ptr<KernTable> kerning_[kFonts];
    size_t used_ = 0, size_ = 0;
    int window_top_, window_rows_;
};

// The cells of a text: one-byte units stay in the first page.
template <class Unit>
class Cells {
public:
    Cells(const Atlas& atlas, const Unit* text)
        : atlas_(&atlas), page0_(atlas.page(0)), text_(text) {}

    const Cell& operator[](int64_t i) const {
        if (sizeof(Unit) == 1) return page0_[text_[i]];
        return atlas_->at(text_[i]);
    }

private:
    const Atlas* atlas_;
    const Cell* page0_;
    const Unit* text_;
};

}  // namespace deepsynth
