// Pagination: lines -> pages, each with the range of text that it holds.
//
// in:  a text (units of 1, 2 or 4 bytes)
// out: its lines, and pages [first_line, end_line) whose ranges [start, end) tile the text. A line
//      end terminates a line (none follows a last "\n"); a form feed terminates a page. An empty
//      text is one blank page.
#pragma once

#include "layout.h"

namespace deepsynth {

struct PageSpan {
    int64_t first_line = 0, end_line = 0;
    int64_t start = 0, end = 0;
};

struct TextView {  // a str's own buffer, or the four-byte units of a prepared text
    const void* data = nullptr;
    int64_t length = 0;
    int bytes = 1;
    bool prepared = false;
};

struct TextLayout {
    std::vector<Line> lines;
    std::vector<PageSpan> pages;
    std::vector<Note> notes;
    Status status = kDone;
    bool complete = true;  // false: stopped after max_pages with text left
};

enum Align { kLeft = 0, kRight = 1, kCenter = 2, kJustify = 3 };

// How the lines of a text are spread over columns and pages.
struct Spread {
    Align align = kLeft;
    bool spaced = false;  // kerning or letter spacing
    int64_t lines_per_page = 1, max_pages = 0;  // 0: no limit
};

// Where a line starts: behind its indentation, and moved by what it leaves free.
inline int start_of(const Line& line, const Measure& measure, Align align) {
    const int free = free_pixels(line, measure);
    return indentation(line, measure) + (align == kRight ? free : align == kCenter ? free / 2 : 0);
}

// The same in a right-to-left paragraph: its indentation is at the right, where its lines end
// unless they are centred or fill the column.
inline int start_from_right(const Line& line, const Measure& measure, Align align) {
    const int free = free_pixels(line, measure);
    if (align == kJustify && line.flags & kWrapped) return 0;
    return align == kCenter ? free / 2 : free;
}

template <class Unit, bool Spaced>
TextLayout paginate(const Atlas& atlas, const TextView& text, const Measure& measure,
                    const Spread& spread) {
    TextLayout out;
    Wrapper<Unit, Spaced> wrapper(atlas, static_cast<const Unit*>(text.data), text.length, measure,
                                text.prepared, out.notes);
    PageSpan page;
    int64_t at = 0;
    bool first = true;
    while (at < text.length) {
        if (spread.max_pages > 0 &&
            static_cast<int64_t>(out.pages.size()) == spread.max_pages) {
            out.complete = false;
            break;
        }
        out.lines.push_back(wrapper.next(at, first));
        out.status = wrapper.status();
        if (out.status != kDone) return out;
        Line& line = out.lines.back();
        line.indent = start_of(line, measure, spread.align);
        first = !(line.flags & kWrapped);
        at = page.end = line.next;
        page.end_line = static_cast<int64_t>(out.lines.size());
        const bool full = page.end_line - page.first_line == spread.lines_per_page;
        if (full || line.flags & kEndsPage || at == text.length) {
            out.pages.push_back(page);
            page = PageSpan{page.end_line, page.end_line, at, at};
        }
    }
    if (out.pages.empty()) out.pages.push_back(page);
    while (!out.notes.empty() && out.notes.back().position >= out.pages.back().end)
        out.notes.pop_back();  // seen while measuring what then went to the page that is not there
    return out;
}

// Calls f with a null pointer of the unit's type, so that every pass over a text is written once.
template <class F>
decltype(auto) with_unit(const TextView& text, F&& f) {
    if (text.bytes == 1) return f(static_cast<const uint8_t*>(nullptr));
    if (text.bytes == 2) return f(static_cast<const uint16_t*>(nullptr));
    return f(static_cast<const uint32_t*>(nullptr));
}

inline TextLayout paginate(const Atlas& atlas, const TextView& text, const Measure& measure,
                           const Spread& spread) {
    return with_unit(text, [&](auto* unit) {
        using Unit = std::remove_cv_t<std::remove_pointer_t<decltype(unit)>>;
        return spread.spaced ? paginate<Unit, true>(atlas, text, measure, spread)
                             : paginate<Unit, false>(atlas, text, measure, spread);
    });
}

}  // namespace deepsynth
