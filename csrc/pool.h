// Memory for pages, used again. Fresh memory costs the system several times what drawing costs us
// (each 4 KiB are faulted in and zeroed), so blocks of pages that were let go wait here for the
// next request of about their size.
//
// At most kKept bytes wait; a block serves requests of at least half its size. The caller
// serialises (the binding holds the interpreter lock).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace deepsynth {

struct Block {
    std::unique_ptr<uint8_t[]> bytes;
    size_t capacity = 0;
};

class Pool {
public:
    // At least `size` bytes that hold anything.
    Block take(size_t size) {
        size_t best = free_.size();
        for (size_t i = 0; i < free_.size(); ++i) {
            const size_t capacity = free_[i].capacity;
            if (capacity < size || capacity / 2 > size) continue;
            if (best == free_.size() || capacity < free_[best].capacity) best = i;
        }
        if (best == free_.size()) return Block{std::unique_ptr<uint8_t[]>(new uint8_t[size]), size};
        Block block = std::move(free_[best]);
        free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(best));
        waiting_ -= block.capacity;
        return block;
    }

    // The longest waiting are freed for what comes back.
    void give(Block block) {
        if (block.capacity > kKept) return;
        waiting_ += block.capacity;
        free_.push_back(std::move(block));
        size_t gone = 0;
        while (waiting_ > kKept || free_.size() - gone > kBlocks)
            waiting_ -= free_[gone++].capacity;
        free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(gone));
    }

    size_t waiting() const { return waiting_; }

    static constexpr size_t kKept = size_t{128} << 20;
    static constexpr size_t kBlocks = 64;

private:
    std::vector<Block> free_;  // longest waiting first
    size_t waiting_ = 0;
};

}  // namespace deepsynth
