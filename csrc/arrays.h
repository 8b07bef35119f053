// Page arrays for numpy: made from the pool, or given by the caller and checked.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "pool.h"

namespace deepsynth {

namespace py = pybind11;

// Never destroyed: arrays may outlive the module.
inline Pool& pool() {
    static Pool* const one = new Pool;
    return *one;
}

// uint8 [pages, height, width] that holds anything; its memory returns to the pool with the array.
inline py::array_t<uint8_t> empty_pages(int64_t pages, int64_t height, int64_t width) {
    const int64_t max_bytes = int64_t{1} << 47;
    if (pages < 0 || height < 1 || width < 1 || height > 1 << 16 || width > 1 << 16 ||
        pages > max_bytes / (height * width))
        throw py::value_error("shape out of range");
    const size_t size = static_cast<size_t>(pages * height * width);
    auto block = std::make_unique<Block>(pool().take(size ? size : 1));
    uint8_t* bytes = block->bytes.get();
    py::capsule owner(block.get(), [](void* p) {
        std::unique_ptr<Block> returned(static_cast<Block*>(p));
        pool().give(std::move(*returned));
    });
    block.release();
    return py::array_t<uint8_t>({pages, height, width}, bytes, owner);
}

// The memory of `out`, if it is uint8 [>= pages, height, width], contiguous and writable.
inline uint8_t* pixels_of(const py::object& out, int64_t pages, int64_t height,
                          int64_t width) {
    if (!py::isinstance<py::array>(out)) throw py::value_error("out: not a numpy array");
    auto array = py::reinterpret_borrow<py::array>(out);
    if (!py::dtype::of<uint8_t>().equal(array.dtype()))
        throw py::value_error("out: dtype must be uint8");
    if (array.ndim() != 3 || array.shape(0) < pages || array.shape(1) != height ||
        array.shape(2) != width)
        throw py::value_error("out: shape must be [>= " + std::to_string(pages) + ", " +
                              std::to_string(height) + ", " + std::to_string(width) +
                              "]");
    if (!(array.flags() & py::array::c_style))
        throw py::value_error("out: must be C-contiguous, pages must not overlap");
    if (!array.writeable()) throw py::value_error("out: is read-only");
    return static_cast<uint8_t*>(array.mutable_data());
}

}  // namespace deepsynth
