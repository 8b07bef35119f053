// Greedy wrap: where a line of text ends.
//
// in:  units (1-, 2- or 4-byte, straight from the str) and their cells
// out: lines [start, next) that tile the text; of each, [start, stop) is drawn (trailing spaces and
//      the line end itself are not: they hang), with its natural width
//
// One pass with one remembered break. A character that passes the limit ends the line at that break
// and the next line starts over from there, so a tab or a kern always sees its own line. Without a
// break the line splits before the character; the first character always fits, however wide.
// Pens are 26.6 pixels in 64 bits: a gigabyte of spaces does not overflow. A pen starts at 0 behind
// the line's indentation, so tab stops are counted from there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "atlas.h"

namespace deepsynth {

struct Measure {
    int64_t limit = 0;   // width of a line, 26.6
    int64_t tab = 64;    // distance of the tab stops, 26.6
    int64_t gap = 0;     // what a tab leaves free at least, 26.6
    int64_t hyphen = 0;  // what the hyphen that a soft hyphen shows adds to a line, 26.6
    int64_t spacing = 0;  // added between two characters, 26.6; may be negative
    int first = 0, hanging = 0;  // indentation of a paragraph's first line, and of its others; px
};

enum LineFlag : uint32_t { kWrapped = 1, kHyphenated = 2, kEndsPage = 4, kFirst = 8 };

struct Line {
    int64_t start = 0, stop = 0, next = 0;
    int64_t width = 0;  // of [start, stop), 26.6
    uint32_t flags = 0;
    int32_t indent = 0;  // where it starts, pixels right of the column's edge
};

inline int indentation(const Line& line, const Measure& m) {
    return line.flags & kFirst ? m.first : m.hanging;
}

// Pixels that a line leaves free in its column.
inline int free_pixels(const Line& line, const Measure& m) {
    const int64_t room = m.limit - int64_t{64} * indentation(line, m) - line.width;
    return static_cast<int>(std::max<int64_t>(0, room) / 64);
}

// What lies between two neighbours in a line beside the left one's advance; negative spacing never
// moves a pen back behind the left one.
inline int gap_between(const Atlas& atlas, const Cell& left, const Cell& right, int64_t spacing) {
    const int64_t own = left.advance > 0 ? std::max<int64_t>(spacing, -left.advance) : 0;
    return atlas.kern(left, right) + static_cast<int>(own);
}

struct Note {  // a character to report
    int64_t position;
    uint32_t flags;
};

enum Status { kDone = 0, kNeedsGlyphs = 1, kNeedsPreparation = 2 };

// The first stop that leaves a gap: two columns of numbers must not read as one.
inline int64_t next_tab(int64_t pen, const Measure& m) {
    return ((pen + std::max<int64_t>(m.gap, 1) - 1) / m.tab + 1) * m.tab;
}

// Spaced: whether neighbours are kerned or letters spaced.
template <class Unit, bool Spaced>
class Wrapper {
public:
    Wrapper(const Atlas& atlas, const Unit* text, int64_t length, const Measure& measure,
            bool prepared, std::vector<Note>& notes)
        : atlas_(atlas), cells_(atlas, text), text_(text), length_(length), measure_(measure),
          prepared_(prepared), notes_(notes) {}

    // The line that starts at `start`; status() tells whether it could be made. first: whether it
    // begins a paragraph.
    Line next(int64_t start, bool first) {
        Line line;
        line.start = start_ = start;
        if (first) line.flags = kFirst;
        limit_ = measure_.limit - int64_t{64} * indentation(line, measure_);
        break_ = Break{start, start, 0, 0};
        int64_t pen = 0;
        for (int64_t i = start; i < length_; ++i) {
            const Cell& cell = cells_[i];
            const uint8_t kind = cell.kind.load(std::memory_order_acquire);
            if (kind == kSpace) {
                pen = space(i, cell, pen);
                continue;
            }
            if (kind != kPlain) {
                if (!acceptable(i, cell, kind)) return line;
                if (kind >= kNewline && kind <= kFormFeed) return line_end(i, kind, line, pen);
                if (kind >= kTab && kind <= kSoftHyphen) {
                    pen = blank(i, cell, kind, pen);
                    continue;
                }
                if (kind == kWide) break_before(i, pen);
            }
            const int64_t reach = pen + cell.advance + gap(i, cell);
            if (reach > limit_ && cell.advance > 0 && pen > 0) return wrap(i, line, pen);
            pen = reach;
            if (kind >= kWide) break_after(i, kind, pen);
        }
        return finish(length_, length_, line, pen);
    }

    Status status() const { return status_; }

private:
    struct Break {
        int64_t next = 0, stop = 0, width = 0;
        uint32_t flags = 0;
    };

    int gap(int64_t i, const Cell& cell) const {
        if (!Spaced || i == start_) return 0;
        return gap_between(atlas_, cells_[i - 1], cell, measure_.spacing);
    }

    // Resolved and needing no rewriting; reports what is to be reported.
    bool acceptable(int64_t i, const Cell& cell, uint8_t kind) {
        if (kind == kUnresolved) status_ = kNeedsGlyphs;
        else if (cell.flags & kPrepare && !prepared_) status_ = kNeedsPreparation;
        else if (cell.flags & kReported && i >= noted_) {
            notes_.push_back({i, cell.flags});
            noted_ = i + 1;  // a line that starts over meets its characters twice
        }
        return status_ == kDone;
    }

    // Spaces, tabs and invisible breaks hang, so they never overflow. Both return the new pen.
    int64_t space(int64_t i, const Cell& cell, int64_t pen) {
        may_break(i, pen);
        return pen + cell.advance + gap(i, cell);
    }

    void may_break(int64_t i, int64_t pen) {
        const bool run = i > start_ && break_.next == i && !(break_.flags & kHyphenated);
        if (run) break_.next = i + 1;  // the text still stops where the run began
        else break_ = Break{i + 1, i, pen, 0};
    }

    int64_t blank(int64_t i, const Cell& cell, uint8_t kind, int64_t pen) {
        if (kind == kSoftHyphen) {
            if (pen + measure_.hyphen <= limit_)
                break_ = Break{i + 1, i, pen + measure_.hyphen, kHyphenated};
            return pen + gap(i, cell);
        }
        may_break(i, pen);
        pen += gap(i, cell);
        if (kind == kTab) return next_tab(pen, measure_);
        return pen + cell.advance;
    }

    void break_before(int64_t i, int64_t pen) {
        if (i > start_ && break_.next != i && may_part(i)) break_ = Break{i, i, pen, 0};
    }

    // May a line end between unit i and what comes before it?
    bool may_part(int64_t i) const {
        int64_t before = i - 1;
        while (before > start_ && (cells_[before].flags & (kJoin | kGlue)) == kJoin) --before;
        return !(cells_[before].flags & (kNoEnd | kGlue)) &&
               !(cells_[i].flags & (kNoStart | kGlue | kJoin)) &&
               cells_[before].kind != kSoftHyphen;  // which breaks with a hyphen or not at all
    }

    // After a wide character a word may start the next line. What joins it has no width, so the
    // break may lie ahead of the pen.
    void break_after(int64_t i, uint8_t kind, int64_t pen) {
        if (kind == kInkBreak) {
            break_ = Break{i + 1, i + 1, pen, 0};
            return;
        }
        int64_t after = i + 1;
        while (after < length_ && (cells_[after].flags & (kJoin | kGlue)) == kJoin) ++after;
        if (after == length_) return;
        const uint8_t next = cells_[after].kind.load(std::memory_order_relaxed);
        const bool word = next == kPlain || next == kNoted || next == kInkBreak;
        if (word && may_part(after)) break_ = Break{after, after, pen, 0};
    }

    // Unit i does not fit.
    Line wrap(int64_t i, Line& line, int64_t pen) const {
        line.flags |= kWrapped;
        if (break_.next <= start_) {  // one word fills the line: split it
            line.stop = line.next = i;
            line.width = pen;
            return line;
        }
        line.stop = break_.stop;
        line.next = break_.next;
        line.width = break_.width;
        line.flags |= break_.flags;
        return line;
    }

    Line line_end(int64_t i, uint8_t kind, Line& line, int64_t pen) const {
        const bool crlf = kind == kReturn && i + 1 < length_ && text_[i + 1] == '\n';
        if (kind == kFormFeed) line.flags |= kEndsPage;
        return finish(i, i + (crlf ? 2 : 1), line, pen);
    }

    Line finish(int64_t stop, int64_t next, Line& line, int64_t pen) const {
        line.stop = stop;
        line.next = next;
        line.width = pen;
        // Blanks at the end are not seen: a soft hyphen there is not shown either.
        if (stop > start_ && break_.next == stop && !(break_.flags & kHyphenated)) {
            line.stop = break_.stop;
            line.width = break_.width;
        }
        return line;
    }

    const Atlas& atlas_;
    Cells<Unit> cells_;
    const Unit* text_;
    int64_t length_;
    Measure measure_;
    bool prepared_;
    std::vector<Note>& notes_;
    int64_t start_ = 0, noted_ = 0, limit_ = 0;
    Break break_;
    Status status_ = kDone;
};

}  // namespace deepsynth
