// Drawing: laid-out lines -> one page of pixels.
//
// in:  a page's lines and the text's cells
// out: uint8 [height, width], 255 paper and 0 ink (inverted on request)
//
// The page is cleared once and ink only ever darkens it, so no line can clear its neighbour's
// accents. Whether ink may lie under a new glyph is known from geometry: `right_` is how far ink
// reaches in this line, `floor_` how far down in the lines before. Beyond both, a glyph is a plain
// subtraction; else each of its rows asks. A glyph whose stored box leaves the page goes pixel by
// pixel; that is also what keeps 16-byte rows inside the page.
#pragma once

#include <algorithm>

#include "paginate.h"

namespace deepsynth {

struct Frame {  // where the lines lie on a page; pixels unless said otherwise
    int width = 0, height = 0;
    int left = 0, baseline = 0;         // of the first line
    int step = 1;                       // from baseline to baseline
    int columns = 1, column_step = 0;   // from column to column
    int64_t lines_per_column = 1;
    bool justify = false, invert = false, kerning = false;
    Measure measure;
};

class Canvas {
public:
    Canvas(uint8_t* pixels, int width, int height)
        : pixels_(pixels), width_(width), height_(height) {
        std::memset(pixels, 255, static_cast<size_t>(width) * height);
    }

    // Ink of one cell, its pen at (x, baseline).
    void glyph(const Cell& cell, int64_t x, int64_t baseline) {
        const int64_t left = x + cell.left, top = baseline - cell.top;
        if (left < 0 || left + cell.stride > width_ || top < 0 || top + cell.height > height_)
            clipped(cell, left, top, baseline);
        else if (left >= right_ && baseline - cell.ink_top >= floor_)
            fresh(cell, left, top);
        else
            blended(cell, left, top);
        right_ = std::max(right_, x + cell.ink_right);
        lowest_ = std::max(lowest_, baseline - cell.ink_bottom);
    }

    void end_line() {
        floor_ = lowest_;
        right_ = INT64_MIN;
    }

    void invert() {
        const size_t n = static_cast<size_t>(width_) * height_;
        for (size_t i = 0; i < n; ++i) pixels_[i] = static_cast<uint8_t>(255 - pixels_[i]);
    }

    int64_t clipped_glyphs() const { return clipped_; }

private:
    uint8_t* place(int64_t left, int64_t top) const { return pixels_ + top * width_ + left; }

    void fresh(const Cell& cell, int64_t left, int64_t top) {
        uint8_t* paper = place(left, top);
        const uint8_t* rows = cell.rows;
        if (cell.stride == kRow) {
            for (int y = 0; y < cell.height; ++y, paper += width_, rows += kRow)
                subtract16(paper, rows);
            return;
        }
        for (int y = 0; y < cell.height; ++y, paper += width_, rows += cell.stride)
            for (int i = 0; i < cell.stride; i += kRow) subtract16(paper + i, rows + i);
    }

    void blended(const Cell& cell, int64_t left, int64_t top) {
        uint8_t* paper = place(left, top);
        for (int y = 0; y < cell.height; ++y, paper += width_)
            blend_row(paper, cell.rows + y * cell.stride, cell.stride);
    }

    void clipped(const Cell& cell, int64_t left, int64_t top, int64_t baseline) {
        const int64_t ink = cell.ink_right - cell.left;
        if (left < 0 || left + ink > width_ || baseline - cell.ink_top < 0 ||
            baseline - cell.ink_bottom > height_)
            ++clipped_;
        const int64_t x0 = std::max<int64_t>(0, -left), x1 = std::min(ink, width_ - left);
        const int64_t y0 = std::max<int64_t>(0, -top);
        const int64_t y1 = std::min<int64_t>(cell.height, height_ - top);
        for (int64_t y = y0; y < y1; ++y)
            for (int64_t x = x0; x < x1; ++x) {
                uint8_t& pixel = *place(left + x, top + y);
                pixel = over(pixel, cell.rows[y * cell.stride + x]);
            }
    }

    uint8_t* pixels_;
    int64_t width_, height_;
    int64_t right_ = INT64_MIN, floor_ = INT64_MIN, lowest_ = INT64_MIN;
    int64_t clipped_ = 0;
};

// How far justified spaces of a line are stretched: whole pixels, spread evenly, after the last tab
// and not before the first word.
struct Stretch {
    int64_t from = INT64_MAX;  // spaces from this unit on
    int64_t spaces = 0, pixels = 0, done = 0;

    int64_t next() {  // 26.6 pixels to add to the next space
        const int64_t before = pixels * done / spaces, after = pixels * (done + 1) / spaces;
        ++done;
        return (after - before) * 64;
    }
};

template <class Unit, bool Kern>
class PageDrawer {
public:
    PageDrawer(const Atlas& atlas, const Unit* text, const Frame& frame, Canvas& canvas)
        : atlas_(atlas), page0_(atlas.page(0)), text_(text), frame_(frame), canvas_(canvas) {}

    void line(const Line& line, int64_t number) {
        const int64_t column = number / frame_.lines_per_column;
        const int64_t row = number % frame_.lines_per_column;
        const int64_t x = frame_.left + column * frame_.column_step + line.indent;
        const int64_t y = frame_.baseline + row * frame_.step;
        Stretch stretch;
        if (frame_.justify && line.flags & kWrapped) stretch = stretch_of(line);
        int64_t pen = 0;
        for (int64_t i = line.start; i < line.stop; ++i) {
            const Cell& cell = at(i);
            const uint8_t kind = cell.kind.load(std::memory_order_acquire);
            if (kind == kTab) {
                pen = next_tab(pen, frame_.measure.tab);
                continue;
            }
            if (Kern && i > line.start) pen += atlas_.kern(at(i - 1), cell);
            if (cell.height) canvas_.glyph(cell, x + pixel(pen), y);
            pen += cell.advance;
            if (kind == kSpace && i >= stretch.from) pen += stretch.next();
        }
        if (line.flags & kHyphenated) canvas_.glyph(atlas_.at('-'), x + pixel(pen), y);
        canvas_.end_line();
    }

private:
    static int64_t pixel(int64_t pen) { return (pen + 32) >> 6; }

    const Cell& at(int64_t i) const {
        if (sizeof(Unit) == 1) return page0_[text_[i]];
        return atlas_.at(text_[i]);
    }

    Stretch stretch_of(const Line& line) const {
        Stretch out;
        bool word = false;
        for (int64_t i = line.start; i < line.stop; ++i) {
            const uint8_t kind = at(i).kind.load(std::memory_order_relaxed);
            if (kind == kTab) {
                out = Stretch();
                word = false;
            } else if (kind != kSpace) {
                word = true;
            } else if (word) {
                if (!out.spaces++) out.from = i;
            }
        }
        out.pixels = std::max<int64_t>(0, (frame_.measure.limit - line.width) / 64);
        return out;
    }

    const Atlas& atlas_;
    const Cell* page0_;
    const Unit* text_;
    const Frame& frame_;
    Canvas& canvas_;
};

// One page [height, width]; returns how many glyphs the page's edge cut.
inline int64_t draw_page(const Atlas& atlas, const TextView& text, const TextLayout& layout,
                         size_t number, const Frame& frame, uint8_t* pixels) {
    Canvas canvas(pixels, frame.width, frame.height);
    const PageSpan& page = layout.pages[number];
    with_unit(text, [&](auto* unit) {
        const auto* units = static_cast<decltype(unit)>(text.data);
        using Unit = std::remove_cv_t<std::remove_pointer_t<decltype(unit)>>;
        const auto lines = [&](auto&& drawer) {
            for (int64_t i = page.first_line; i < page.end_line; ++i)
                drawer.line(layout.lines[i], i - page.first_line);
        };
        if (frame.kerning) lines(PageDrawer<Unit, true>(atlas, units, frame, canvas));
        else lines(PageDrawer<Unit, false>(atlas, units, frame, canvas));
    });
    if (frame.invert) canvas.invert();
    return canvas.clipped_glyphs();
}

}  // namespace deepsynth
