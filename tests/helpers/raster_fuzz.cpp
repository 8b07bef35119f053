// Fuzz target for csrc/: bytes -> a font, a style and a text -> layout and drawing, twice.
//
// Every claim is checked with an abort: line ends advance, page ranges tile the text, no pixel
// outside the page is touched (the sanitizer's part), and each pixel equals that of a surface that
// composites pixel by pixel. With libFuzzer:
//     clang++ -std=c++17 -g -fsanitize=fuzzer,address,undefined -Icsrc tests/raster_fuzz.cpp
// Without -fsanitize=fuzzer, define RASTER_MAIN: `raster_fuzz FIRST COUNT [FILE...]` runs COUNT
// pseudo-random inputs from seed FIRST on, and files of a corpus; prints a checksum of all pages.

#include <cstdio>
#include <cstdlib>
#include <random>

#include "plan.h"

using namespace deepsynth;

namespace {

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            std::fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            std::abort();                                                            \
        }                                                                            \
    } while (0)

uint64_t checksum = 14695981039346656037u;

struct Bytes {  // a stream of numbers, zero when it has run dry
    const uint8_t* at;
    const uint8_t* end;

    int byte() { return at < end ? *at++ : 0; }
    int in(int low, int high) { return low + (byte() * 256 + byte()) % (high - low + 1); }
    size_t left() const { return end - at; }
};

class Naive {  // a surface that composites one pixel at a time
public:
    Naive(int width, int height) : width_(width), height_(height), page_(width * height, 255) {}

    Strip begin_line(int64_t, bool) { return Strip(); }
    void end_line(const Strip&) {}
    void glyph(Strip&, const Cell& cell, int64_t x, int64_t baseline) {
        for (int64_t row = 0; row < cell.height; ++row)
            for (int64_t column = 0; column < cell.stride; ++column) {
                const int64_t px = x + cell.left + column, py = baseline - cell.top + row;
                if (px < 0 || px >= width_ || py < 0 || py >= height_) continue;
                uint8_t& pixel = page_[py * width_ + px];
                pixel = over(pixel, 255u - cell.rows[row * cell.stride + column]);
            }
    }
    const std::vector<uint8_t>& page() const { return page_; }

private:
    int64_t width_, height_;
    std::vector<uint8_t> page_;
};

// A glyph of random ink, place, kind and flags for each unit that a text may use.
void fill(Atlas& atlas, uint32_t unit, Bytes& in) {
    std::vector<uint8_t> ink;
    Glyph g;
    g.kind = in.in(kPlain, kKinds - 1);
    g.flags = in.in(0, 15) ? in.byte() & (kNoStart | kNoEnd | kGlue | kJoin) : in.byte();
    g.font = in.in(0, 3) ? 0 : kFonts;
    g.glyph = in.in(0, 40);
    g.advance = in.in(0, 3) ? in.in(0, 20) * 64 : in.in(0, 3000);
    if (in.in(0, 3)) {
        g.width = in.in(0, 3) ? in.in(1, 14) : in.in(1, 70);
        g.height = in.in(0, 3) ? in.in(1, 14) : in.in(1, 70);
        g.left = in.in(-6, 6);
        g.top = in.in(-6, 20);
    }
    g.pitch = g.width;
    for (int i = 0; i < g.width * g.height; ++i) ink.push_back(i % 3 ? 255 : in.byte());
    g.coverage = ink.data();
    atlas.add(unit, g);
}

Frame frame_from(Bytes& in) {
    Frame f;
    f.width = in.in(1, 130);
    f.height = in.in(1, 90);
    f.left = in.in(0, f.width);
    f.baseline = in.in(0, f.height + 5);
    f.step = in.in(1, 30);
    f.columns = in.in(1, 3);
    f.column_step = in.in(0, f.width);
    f.lines_per_column = in.in(1, 6);
    f.align = static_cast<Align>(in.in(kLeft, kJustify));
    f.ink = in.in(0, 255);
    f.paper = in.in(0, 255);
    f.spaced = in.in(0, 1);
    f.measure = Measure{in.in(1, 8000),     in.in(1, 3000), in.in(0, 500), in.in(0, 700),
                        in.in(-2000, 2000), in.in(0, 150),  in.in(0, 150)};
    return f;
}

void check_layout(const TextLayout& layout, int64_t length, int64_t max_pages) {
    CHECK(layout.status == kDone);
    int64_t at = 0, line = 0;
    for (const PageSpan& page : layout.pages) {
        CHECK(page.start == at && page.end >= at && page.first_line == line);
        for (; line < page.end_line; ++line) {
            const Line& l = layout.lines[line];
            CHECK(l.start == at && l.next > at && l.stop >= l.start && l.stop <= l.next);
            at = l.next;
        }
        CHECK(page.end == at);
    }
    CHECK(line == static_cast<int64_t>(layout.lines.size()));
    CHECK(at == length || (!layout.complete && max_pages > 0));
    for (const Note& note : layout.notes) CHECK(note.position >= 0 && note.position < at);
}

void draw_and_compare(const Atlas& atlas, Plan& plan, const Frame& frame) {
    const int64_t pages = plan.number_pages();
    const size_t bytes = static_cast<size_t>(frame.width) * frame.height;
    for (int64_t p = 0; p < pages; ++p) {
        const PlannedText& text = plan.text(plan.page_owner(p));
        std::unique_ptr<uint8_t[]> page(new uint8_t[bytes]);  // alone: any step outside is seen
        std::memset(page.get(), static_cast<int>(p * 37), bytes);
        draw_page(atlas, text.view, text.layout, p - text.first_page, frame, page.get());
        Naive naive(frame.width, frame.height);
        draw_lines(atlas, text.view, text.layout, p - text.first_page, frame, naive);
        for (size_t i = 0; i < bytes; ++i) {
            const int v = naive.page()[i], mixed = frame.ink * (255 - v) + frame.paper * v;
            CHECK(page[i] == (2 * mixed + 255) / 510);
            checksum = (checksum ^ page[i]) * 1099511628211u;
        }
    }
    std::vector<uint8_t> batch(bytes * pages + 1);
    plan.draw(batch.data(), 3);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes in{data, data + size};
    const int units = in.in(1, 24), top = in.in(1, 20);
    Atlas atlas(top, top + in.in(1, 12) - 1);
    auto table = std::make_unique<KernTable>(20);
    for (int i = 0; i < 20; ++i)
        table->add(static_cast<uint16_t>(in.in(0, 40)), static_cast<uint16_t>(in.in(1, 40)),
                   in.in(-300, 300));
    atlas.set_kerning(0, std::move(table));
    const uint32_t base[3] = {0x20, 0x4E00, kFirstComposite};
    for (uint32_t first : base)
        for (int i = 0; i < units; ++i) fill(atlas, first + i, in);
    if (!atlas.has('-')) fill(atlas, '-', in);
    const Frame frame = frame_from(in);
    const int64_t max_pages = in.in(0, 3) ? 0 : in.in(1, 3);

    std::vector<uint8_t> narrow;
    std::vector<uint16_t> medium;
    std::vector<uint32_t> wide;
    for (size_t n = in.left(); n > 0; --n) {
        const int byte = in.byte(), unit = byte % units;
        narrow.push_back(static_cast<uint8_t>(base[0] + unit));
        medium.push_back(static_cast<uint16_t>(base[byte >> 7] + unit));
        wide.push_back(base[byte % 3] + unit);
    }
    const int64_t length = static_cast<int64_t>(narrow.size());
    Plan plan(atlas, frame, max_pages);
    plan.add(TextView{narrow.data(), length, 1, true});
    plan.add(TextView{medium.data(), length, 2, true});
    plan.add(TextView{wide.data(), length, 4, true});
    plan.layout({0, 1, 2}, 2);
    for (size_t i = 0; i < 3; ++i) check_layout(plan.text(i).layout, length, max_pages);
    draw_and_compare(atlas, plan, frame);
    return 0;
}

#ifdef RASTER_MAIN
int main(int argc, char** argv) {
    if (argc < 3) return std::fprintf(stderr, "raster_fuzz FIRST COUNT [FILE...]\n"), 2;
    const int first = std::atoi(argv[1]), count = std::atoi(argv[2]);
    for (int seed = first; seed < first + count; ++seed) {
        std::mt19937 random(static_cast<unsigned>(seed));
        std::vector<uint8_t> input(400 + random() % 6000);
        for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    for (int i = 3; i < argc; ++i) {
        std::vector<uint8_t> input;
        if (std::FILE* file = std::fopen(argv[i], "rb")) {
            for (int c; (c = std::fgetc(file)) != EOF;) input.push_back(static_cast<uint8_t>(c));
            std::fclose(file);
        }
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(checksum));
    return 0;
}
#endif
