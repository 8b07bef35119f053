// Drawing: laid-out lines -> one page of pixels.
//
// in:  a page's lines and the text's cells
// out: uint8 [height, width], drawn with 255 for paper and 0 for ink, then in the page's own greys
//
// Whether ink may lie under a new glyph is known from geometry: `right` is how far ink reaches in
// this line, `floor_` how far down in the lines before, `columns_` how far right in the columns
// before. Beyond all three the paper under the glyph's stored box is white, and drawing is copying:
// no pixel is read, so neighbours do not wait for each other's stores. Else the pixels are read, so
// that no line can erase its neighbour's accents. The page is cleared just ahead of the lines, while
// it is in the nearest cache. A glyph whose stored box leaves the page goes pixel by pixel; that is
// also what keeps 16-byte rows inside the page.
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
    Align align = kLeft;
    bool spaced = false;         // kerning or letter spacing
    int ink = 0, paper = 255;    // greys
    Measure measure;
};

// One line on the canvas: what drawing a glyph in the atlas's window needs, small enough to stay in
// registers (pixels are bytes, so the compiler must assume that storing them changes any member).
struct Strip {
    uint8_t* top = nullptr;  // the window's first row
    int64_t right = 0;       // ink reaches up to here
    int64_t last_left = INT64_MIN;  // the greatest `left` at which a stored row fits; here: none
    int64_t rows = 0, width = 0;  // of the window, of the page

    // A windowed glyph where ink may lie, `left` in [0, last_left].
    void blend(const Cell& cell, int64_t left) const {
        uint8_t* const paper = top + left;
        bool clash = false;
        for (int64_t y = 0; y < rows; ++y)
            clash |= overlaps16(paper + y * width, cell.rows + y * kRow);
        for (int64_t y = 0; y < rows; ++y) {
            if (clash) over16(paper + y * width, cell.rows + y * kRow);
            else subtract16(paper + y * width, cell.rows + y * kRow);
        }
    }

    // A windowed glyph on white paper, `left` in [right, last_left].
    void draw(const Cell& cell, int64_t left) const {
        uint8_t* paper = top + left;
        const uint8_t* row = cell.rows;
        for (int64_t y = rows; y > 0; --y, paper += width, row += kRow) copy16(paper, row);
    }
};

class Canvas {
public:
    Canvas(uint8_t* pixels, int width, int height, const Atlas& atlas)
        : pixels_(pixels), width_(width), height_(height), window_top_(atlas.window_top()),
          window_rows_(atlas.window_rows()) {}

    Strip begin_line(int64_t baseline, bool new_column) {
        const int64_t top = baseline - window_top_, bottom = top + window_rows_;
        clear(bottom);
        if (new_column) columns_ = farthest_;
        floor_ = new_column ? kNowhere : lowest_;
        Strip strip;
        strip.right = columns_;
        if (top >= floor_ && top >= 0 && bottom <= height_) {
            strip = {place(0, top), std::max<int64_t>(columns_, 0), width_ - kRow, window_rows_,
                     width_};
        }
        lowest_ = std::max(floor_, bottom);
        return strip;
    }

    // Any glyph anywhere, its pen at (x, baseline).
    void glyph(Strip& strip, const Cell& cell, int64_t x, int64_t baseline) {
        const int64_t left = x + cell.left, top = baseline - cell.top;
        if (top + cell.height > cleared_) clear(top + cell.height);
        if (left < 0 || left + cell.stride > width_ || top < 0 || top + cell.height > height_)
            clipped(cell, left, top, baseline);
        else if (left >= strip.right && top >= floor_)
            fresh(cell, left, top);
        else
            blended(cell, left, top);
        strip.right = std::max(strip.right, x + cell.ink_right);
        lowest_ = std::max(lowest_, baseline - cell.ink_bottom);
    }

    void end_line(const Strip& strip) { farthest_ = std::max(farthest_, strip.right); }

    void finish(int ink, int paper) {
        clear(height_);
        recolour(pixels_, width_ * height_, ink, paper);
    }

    int64_t clipped_glyphs() const { return clipped_; }

private:
    static constexpr int64_t kNowhere = INT64_MIN;

    uint8_t* place(int64_t left, int64_t top) const { return pixels_ + top * width_ + left; }

    void clear(int64_t bottom) {
        bottom = std::min(bottom, height_);
        if (bottom <= cleared_) return;
        std::memset(place(0, cleared_), 255, static_cast<size_t>((bottom - cleared_) * width_));
        cleared_ = bottom;
    }

    void fresh(const Cell& cell, int64_t left, int64_t top) {
        uint8_t* paper = place(left, top);
        const uint8_t* rows = cell.rows;
        if (cell.stride == kRow) {
            for (int y = 0; y < cell.height; ++y, paper += width_, rows += kRow)
                copy16(paper, rows);
            return;
        }
        for (int y = 0; y < cell.height; ++y, paper += width_, rows += cell.stride)
            for (int i = 0; i < cell.stride; i += kRow) copy16(paper + i, rows + i);
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
                pixel = over(pixel, 255u - cell.rows[y * cell.stride + x]);
            }
    }

    uint8_t* pixels_;
    int64_t width_, height_, window_top_, window_rows_;
    int64_t cleared_ = 0;  // rows above are white or drawn on; below they hold anything
    int64_t floor_ = kNowhere, lowest_ = kNowhere;  // ink of this column: lines before, all so far
    int64_t columns_ = kNowhere, farthest_ = kNowhere;  // the same to the right, over columns
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

// Walks the lines of a page and hands each glyph with its place to a surface: a Canvas, or what
// replay.h records.
template <class Unit, bool Spaced, class Surface>
class PageDrawer {
public:
    PageDrawer(const Atlas& atlas, const Unit* text, const Frame& frame, Surface& canvas)
        : atlas_(atlas), text_(text), frame_(frame), canvas_(canvas) {}

    void line(const Line& line, int64_t number) {
        const int64_t column = number / frame_.lines_per_column;
        const int64_t row = number % frame_.lines_per_column;
        const int64_t x = frame_.left + column * frame_.column_step + line.indent;
        const int64_t y = frame_.baseline + row * frame_.step;
        Stretch stretch;
        if (frame_.align == kJustify && line.flags & kWrapped) stretch = stretch_of(line);
        Strip strip = canvas_.begin_line(y, row == 0 && column > 0);
        const Cells<Unit> cells(atlas_, text_);  // a copy: the compiler keeps it in registers
        const int64_t start = line.start, stop = line.stop;
        int64_t pen = 0;
        for (int64_t i = start; i < stop; ++i) {
            const Cell& cell = cells[i];
            if (Spaced && i > start)
                pen += gap_between(atlas_, cells[i - 1], cell, frame_.measure.spacing);
            const int64_t left = x + pixel(pen) + cell.left;
            if (cell.flags & kWindow && left >= 0 && left <= strip.last_left) {
                const int64_t right = left - cell.left + cell.ink_right;
                if (left >= strip.right) strip.draw(cell, left);
                else strip.blend(cell, left);
                strip.right = std::max(strip.right, right);
                pen += cell.advance;
                continue;
            }
            const uint8_t kind = cell.kind.load(std::memory_order_acquire);
            if (cell.height) canvas_.glyph(strip, cell, x + pixel(pen), y);
            pen = kind == kTab ? next_tab(pen, frame_.measure) : pen + cell.advance;
            if (kind == kSpace && i >= stretch.from) pen += stretch.next();
        }
        if (line.flags & kHyphenated) {
            const Cell& hyphen = atlas_.at('-');
            pen += frame_.measure.hyphen - hyphen.advance;  // letter spacing
            canvas_.glyph(strip, hyphen, x + pixel(pen), y);
        }
        canvas_.end_line(strip);
    }

private:
    static int64_t pixel(int64_t pen) { return (pen + 32) >> 6; }

    Stretch stretch_of(const Line& line) const {
        const Cells<Unit> cells(atlas_, text_);
        Stretch out;
        bool word = false;
        for (int64_t i = line.start; i < line.stop; ++i) {
            const uint8_t kind = cells[i].kind.load(std::memory_order_relaxed);
            if (kind == kTab) {
                out = Stretch();
                word = false;
            } else if (kind != kSpace) {
                word = true;
            } else if (word) {
                if (!out.spaces++) out.from = i;
            }
        }
        out.pixels = free_pixels(line, frame_.measure);
        return out;
    }

    const Atlas& atlas_;
    const Unit* text_;
    const Frame& frame_;
    Surface& canvas_;
};

// Page `number` of a text onto a surface.
template <class Surface>
void draw_lines(const Atlas& atlas, const TextView& text, const TextLayout& layout, size_t number,
                const Frame& frame, Surface& surface) {
    const PageSpan& page = layout.pages[number];
    with_unit(text, [&](auto* unit) {
        const auto* units = static_cast<decltype(unit)>(text.data);
        using Unit = std::remove_cv_t<std::remove_pointer_t<decltype(unit)>>;
        const auto lines = [&](auto&& drawer) {
            for (int64_t i = page.first_line; i < page.end_line; ++i)
                drawer.line(layout.lines[i], i - page.first_line);
        };
        if (frame.spaced)
            lines(PageDrawer<Unit, true, Surface>(atlas, units, frame, surface));
        else
            lines(PageDrawer<Unit, false, Surface>(atlas, units, frame, surface));
    });
}

// One page [height, width]; returns how many glyphs the page's edge cut.
inline int64_t draw_page(const Atlas& atlas, const TextView& text, const TextLayout& layout,
                         size_t number, const Frame& frame, uint8_t* pixels) {
    Canvas canvas(pixels, frame.width, frame.height, atlas);
    draw_lines(atlas, text, layout, number, frame, canvas);
    canvas.finish(frame.ink, frame.paper);
    return canvas.clipped_glyphs();
}

}  // namespace deepsynth
