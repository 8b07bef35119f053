// A plan: many texts laid out, then drawn into one batch of pages.
//
// Layout and drawing are separate steps because the number of pages is known only in between, and
// one contiguous [N, height, width] is what makes the pages cheap (fresh memory costs more than the
// ink). Both steps run on several threads: over texts, then over pages.
#pragma once

#include <numeric>

#include "draw.h"
#include "parallel.h"

namespace deepsynth {

struct PlannedText {
    TextView view;
    TextLayout layout;
    std::vector<uint32_t> units;  // what `view` points to, for prepared texts
    int64_t first_page = 0;
};

class Plan {
public:
    Plan(const Atlas& atlas, const Frame& frame, int64_t max_pages)
        : atlas_(atlas), frame_(frame), max_pages_(max_pages) {}

    void add(const TextView& view) { texts_.emplace_back().view = view; }

    // Replace a text by prepared units of the same length. After layout: for drawing only.
    void replace(size_t i, std::vector<uint32_t> units) {
        PlannedText& text = texts_[i];
        text.units = std::move(units);
        text.view = TextView{text.units.data(), static_cast<int64_t>(text.units.size()), 4, true};
    }

    void layout(const std::vector<size_t>& which, int threads) {
        clipped_.clear();
        owner_.clear();
        const Spread spread{frame_.align, frame_.spaced, frame_.lines_per_column * frame_.columns,
                            max_pages_};
        parallel_for(static_cast<int64_t>(which.size()), threads, [&](int64_t k) {
            PlannedText& text = texts_[which[k]];
            text.layout = paginate(atlas_, text.view, frame_.measure, spread);
        });
    }

    // Number the pages of all texts; returns how many there are.
    int64_t number_pages() {
        owner_.clear();
        for (size_t i = 0; i < texts_.size(); ++i) {
            texts_[i].first_page = static_cast<int64_t>(owner_.size());
            owner_.resize(owner_.size() + texts_[i].layout.pages.size(), i);
        }
        clipped_.assign(owner_.size(), 0);
        return static_cast<int64_t>(owner_.size());
    }

    // pixels: [number_pages(), height, width]
    void draw(uint8_t* pixels, int threads) {
        const size_t bytes = static_cast<size_t>(frame_.width) * frame_.height;
        parallel_for(static_cast<int64_t>(owner_.size()), threads, [&](int64_t p) {
            const PlannedText& text = texts_[owner_[p]];
            clipped_[p] = draw_page(atlas_, text.view, text.layout, p - text.first_page, frame_,
                                    pixels + bytes * p);
        });
    }

    int64_t clipped(size_t i) const {
        if (clipped_.empty()) return 0;  // not drawn yet
        const auto first = clipped_.begin() + texts_[i].first_page;
        return std::accumulate(first, first + texts_[i].layout.pages.size(), int64_t{0});
    }

    size_t size() const { return texts_.size(); }
    const Frame& frame() const { return frame_; }
    const Atlas& atlas() const { return atlas_; }
    PlannedText& text(size_t i) { return texts_[i]; }
    size_t page_owner(size_t page) const { return owner_[page]; }

private:
    const Atlas& atlas_;
    Frame frame_;
    int64_t max_pages_;
    std::vector<PlannedText> texts_;
    std::vector<size_t> owner_;     // page -> text
    std::vector<int64_t> clipped_;  // page -> glyphs cut by its edge
};

}  // namespace deepsynth
