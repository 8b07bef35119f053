// A loop over independent items on several threads.
//
// Threads live only as long as the call, so nothing is left over that a fork could break. Items are
// handed out one by one: texts differ in length, and a counter is cheaper than a page.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace deepsynth {

template <class F>
void parallel_for(int64_t count, int threads, F&& f) {
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; ++i) f(i);
        return;
    }
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            for (int64_t i = next++; i < count; i = next++) f(i);
        } catch (...) {
            if (!failed.exchange(true)) failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> helpers;
    const int64_t workers = count < threads ? count : threads;
    helpers.reserve(workers);
    for (int64_t i = 1; i < workers; ++i) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // no more threads to be had: those there are, and this one, do the work
        }
    }
    work();
    for (auto& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace deepsynth
