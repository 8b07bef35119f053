// The lower bound that the renderer is measured against: clear the page, then put ink where it is
// known to go. No text is read, nothing is measured, wrapped, clipped or blended; what drawing a
// text needs beyond this is the price of layout and exactness. Used by bench/render.py only.
#pragma once

#include "plan.h"

namespace deepsynth {

struct Placement {
    const Cell* cell;
    int64_t offset;  // of the first row, from the start of the page
};

class Recorder {  // a surface that remembers instead of drawing
public:
    Recorder(const Frame& frame, std::vector<Placement>& out) : frame_(frame), out_(out) {}

    Strip begin_line(int64_t, bool) { return Strip(); }  // nothing fits it: all goes to glyph()
    void glyph(Strip&, const Cell& cell, int64_t x, int64_t baseline) {
        const int64_t left = x + cell.left, top = baseline - cell.top;
        if (left >= 0 && left + cell.stride <= frame_.width && top >= 0 &&
            top + cell.height <= frame_.height)
            out_.push_back({&cell, top * frame_.width + left});
    }
    void end_line(const Strip&) {}

private:
    const Frame& frame_;
    std::vector<Placement>& out_;
};

class Replay {
public:
    explicit Replay(Plan& plan) : frame_(plan.frame()), pages_(plan.number_pages()) {
        for (size_t p = 0; p < pages_.size(); ++p) {
            const PlannedText& text = plan.text(plan.page_owner(p));
            Recorder recorder(frame_, pages_[p]);
            draw_lines(plan.atlas(), text.view, text.layout, p - text.first_page, frame_, recorder);
        }
    }

    int64_t glyphs() const {
        int64_t n = 0;
        for (const auto& page : pages_) n += static_cast<int64_t>(page.size());
        return n;
    }
    int64_t pages() const { return static_cast<int64_t>(pages_.size()); }
    const Frame& frame() const { return frame_; }

    void draw(uint8_t* pixels) const {
        const int64_t width = frame_.width, bytes = width * frame_.height;
        for (const auto& page : pages_) {
            std::memset(pixels, 255, bytes);
            for (const Placement& place : page) blit(*place.cell, pixels + place.offset, width);
            pixels += bytes;
        }
    }

private:
    static void blit(const Cell& cell, uint8_t* paper, int64_t width) {
        const uint8_t* rows = cell.rows;
        for (int y = cell.height; y > 0; --y, paper += width, rows += cell.stride)
            for (int i = 0; i < cell.stride; i += kRow) copy16(paper + i, rows + i);
    }

    Frame frame_;
    std::vector<std::vector<Placement>> pages_;
};

}  // namespace deepsynth
