// deepsynth_min._raster: the rasterizer for Python. Nothing is computed here: types are checked and
// converted, errors are mapped, the interpreter lock is dropped around layout and drawing.
//
//   Atlas(window_top, window_rows)   add(...), unresolved(text or units), set_kerning(...)
//   Frame(**geometry)
//   empty_pages(pages, height, width) -> uint8 array from the pool
//   Plan(atlas, frame, max_pages)    layout(texts, threads) -> draw(out, threads) -> result(i)

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>

#include "arrays.h"
#include "replay.h"

namespace py = pybind11;
using namespace deepsynth;

namespace {

using Units = py::array_t<uint32_t, py::array::c_style>;
using Coverage = py::array_t<uint8_t, py::array::c_style>;

TextView view_of(const py::handle& text) {
    if (!PyUnicode_Check(text.ptr())) throw py::type_error("text must be str");
    return TextView{PyUnicode_DATA(text.ptr()), PyUnicode_GET_LENGTH(text.ptr()),
                    static_cast<int>(PyUnicode_KIND(text.ptr())), false};
}

std::vector<uint32_t> checked(const Units& units, int64_t length) {
    if (units.ndim() != 1 || (length >= 0 && units.shape(0) != length))
        throw py::value_error("units must be one-dimensional and as long as the text");
    std::vector<uint32_t> out(units.data(), units.data() + units.shape(0));
    for (uint32_t unit : out)
        if (unit >= kUnits) throw py::value_error("unit out of range");
    return out;
}

void add(Atlas& atlas, uint32_t unit, int kind, int flags, int advance, int font, int glyph,
         int left, int top, const Coverage& coverage) {
    if (coverage.ndim() != 2) throw py::value_error("coverage must be [height, width]");
    Glyph g;
    g.coverage = coverage.data();
    g.height = static_cast<int>(std::min<py::ssize_t>(coverage.shape(0), 1 << 20));
    g.width = static_cast<int>(std::min<py::ssize_t>(coverage.shape(1), 1 << 20));
    g.pitch = g.width;
    g.left = left;
    g.top = top;
    g.advance = advance;
    g.font = font;
    g.glyph = glyph;
    g.kind = kind;
    g.flags = flags;
    atlas.add(unit, g);
}

template <class Unit>
void collect(const Atlas& atlas, const Unit* text, int64_t n, std::set<uint32_t>& out) {
    for (int64_t i = 0; i < n; ++i)
        if (!atlas.has(text[i])) out.insert(text[i]);
}

// The distinct units of a str or a uint32 array that the atlas does not have, ascending.
std::set<uint32_t> unresolved(const Atlas& atlas, const py::object& text) {
    std::set<uint32_t> out;
    std::vector<uint32_t> units;
    TextView view;
    if (py::isinstance<py::str>(text)) {
        view = view_of(text);
    } else {
        units = checked(py::cast<Units>(text), -1);
        view = TextView{units.data(), static_cast<int64_t>(units.size()), 4, true};
    }
    py::gil_scoped_release unlocked;
    with_unit(view, [&](auto* unit) {
        collect(atlas, static_cast<decltype(unit)>(view.data), view.length, out);
    });
    return out;
}

void set_kerning(Atlas& atlas, int font, const std::vector<std::array<int, 3>>& pairs) {
    auto table = std::make_unique<KernTable>(pairs.size());
    for (const auto& [left, right, value] : pairs) {
        if (left < 0 || left > 65535 || right < 0 || right > 65535 || std::abs(value) > 1 << 20)
            throw py::value_error("kerning pair out of range");
        table->add(static_cast<uint16_t>(left), static_cast<uint16_t>(right), value);
    }
    atlas.set_kerning(font, std::move(table));
}

class PyPlan {
public:
    PyPlan(const Atlas& atlas, const Frame& frame, int64_t max_pages)
        : plan_(atlas, frame, max_pages) {}

    // Lay out the texts; returns [(index, status)] of those that could not be.
    std::vector<std::pair<size_t, int>> layout(const py::list& texts, int threads) {
        std::vector<size_t> all;
        for (const auto& text : texts) {
            plan_.add(view_of(text));
            owners_.push_back(py::reinterpret_borrow<py::object>(text));
            all.push_back(all.size());
        }
        return layout_again(all, threads);
    }

    std::vector<std::pair<size_t, int>> layout_again(const std::vector<size_t>& which,
                                                     int threads) {
        for (size_t i : which) check(i);
        {
            py::gil_scoped_release unlocked;
            plan_.layout(which, threads);
        }
        std::vector<std::pair<size_t, int>> pending;
        for (size_t i : which)
            if (plan_.text(i).layout.status != kDone)
                pending.emplace_back(i, plan_.text(i).layout.status);
        return pending;
    }

    void replace(size_t i, const Units& units) {
        check(i);
        plan_.replace(i, checked(units, plan_.text(i).view.length));
    }

    int64_t number_pages() { return plan_.number_pages(); }

    void draw(const py::object& out, int threads) {
        const int64_t pages = plan_.number_pages();
        uint8_t* pixels = pixels_of(out, pages, plan_.frame().height, plan_.frame().width);
        py::gil_scoped_release unlocked;
        plan_.draw(pixels, threads);
    }

    // (ranges int64 [N, 2], noted positions int64 [M], their flags int64 [M], glyphs cut by an
    //  edge, whole text laid out, lines on the last page)
    py::tuple result(size_t i) {
        check(i);
        const TextLayout& layout = plan_.text(i).layout;
        if (layout.status != kDone || layout.pages.empty())
            throw py::value_error("the text is not laid out");
        py::array_t<int64_t> ranges({layout.pages.size(), size_t{2}});
        py::array_t<int64_t> positions(layout.notes.size()), flags(layout.notes.size());
        for (size_t p = 0; p < layout.pages.size(); ++p) {
            ranges.mutable_at(p, 0) = layout.pages[p].start;
            ranges.mutable_at(p, 1) = layout.pages[p].end;
        }
        for (size_t k = 0; k < layout.notes.size(); ++k) {
            positions.mutable_at(k) = layout.notes[k].position;
            flags.mutable_at(k) = layout.notes[k].flags;
        }
        const PageSpan& last = layout.pages.back();
        return py::make_tuple(ranges, positions, flags, plan_.clipped(i), layout.complete,
                              last.end_line - last.first_line);
    }

    int64_t pages(size_t i) {
        check(i);
        return static_cast<int64_t>(plan_.text(i).layout.pages.size());
    }

    // int64 [lines, 4]: start, stop, next, width in 26.6
    py::array_t<int64_t> lines(size_t i) {
        check(i);
        const auto& lines = plan_.text(i).layout.lines;
        py::array_t<int64_t> out({lines.size(), size_t{4}});
        for (size_t k = 0; k < lines.size(); ++k) {
            const int64_t row[4] = {lines[k].start, lines[k].stop, lines[k].next, lines[k].width};
            std::memcpy(out.mutable_data(k, 0), row, sizeof row);
        }
        return out;
    }

    // Line `line` of text i is of a right-to-left paragraph.
    void from_right(size_t i, size_t line) {
        check(i);
        if (line >= plan_.text(i).layout.lines.size()) throw py::index_error("line");
        Line& moved = plan_.text(i).layout.lines[line];
        moved.indent = start_from_right(moved, plan_.frame().measure, plan_.frame().align);
    }

    Replay replay() { return Replay(plan_); }

private:
    void check(size_t i) {
        if (i >= plan_.size()) throw py::index_error("text");
    }

    Plan plan_;
    std::vector<py::object> owners_;  // keep the str buffers alive
};

// Takes every field by name, so that none can be forgotten or misplaced.
Frame make_frame(const py::kwargs& fields) {
    const auto take = [&](const char* name) {
        if (!fields.contains(name)) throw py::value_error(std::string("frame lacks ") + name);
        return fields[name].cast<int64_t>();
    };
    const auto small = [&](const char* name, int64_t low, int64_t most = 1 << 16) {
        const int64_t value = take(name);
        if (value < low || value > most)
            throw py::value_error(std::string(name) + " out of range");
        return static_cast<int>(value);
    };
    Frame f;
    f.width = small("width", 1);
    f.height = small("height", 1);
    f.left = small("left", 0);
    f.baseline = small("baseline", 0);
    f.step = small("step", 1);
    f.columns = small("columns", 1);
    f.column_step = small("column_step", 0);
    f.lines_per_column = small("lines_per_column", 1);
    f.align = static_cast<Align>(small("align", kLeft, kJustify));
    f.ink = small("ink", 0, 255);
    f.paper = small("paper", 0, 255);
    f.spaced = take("spaced") != 0;
    f.measure = Measure{take("limit"),  take("tab"),       take("gap"),
                        take("hyphen"), take("spacing"),   small("first", 0),
                        small("hanging", 0)};
    const int64_t limit = int64_t{1} << 32;
    const Measure& m = f.measure;
    if (m.limit < 1 || m.tab < 1 || m.gap < 0 || m.hyphen < 0 || m.limit > limit ||
        m.tab > limit || m.gap > limit || m.hyphen > limit)
        throw py::value_error("limit, tab, gap or hyphen out of range");
    if (m.spacing < -(1 << 20) || m.spacing > 1 << 20)
        throw py::value_error("spacing out of range");
    return f;
}

}  // namespace

PYBIND11_MODULE(_raster, m) {
    m.doc() = "Layout and compositing of text pages; see csrc/.";
    py::class_<Atlas>(m, "Atlas")
        .def(py::init<int, int>(), py::arg("window_top"), py::arg("window_rows"))
        .def("add", &add, py::arg("unit"), py::arg("kind"), py::arg("flags"), py::arg("advance"),
             py::arg("font"), py::arg("glyph"), py::arg("left"), py::arg("top"),
             py::arg("coverage"))
        .def("unresolved", &unresolved)
        .def("set_kerning", &set_kerning)
        .def("__len__", &Atlas::size)
        .def("bytes", &Atlas::bytes);
    py::class_<Frame>(m, "Frame")
        .def(py::init(&make_frame))
        .def_readonly("baseline", &Frame::baseline)
        .def_readonly("step", &Frame::step)
        .def_readonly("lines_per_column", &Frame::lines_per_column);
    py::class_<PyPlan>(m, "Plan")
        .def(py::init<const Atlas&, const Frame&, int64_t>(), py::keep_alive<1, 2>(),
             py::arg("atlas"), py::arg("frame"), py::arg("max_pages"))
        .def("layout", &PyPlan::layout)
        .def("layout_again", &PyPlan::layout_again)
        .def("replace", &PyPlan::replace)
        .def("number_pages", &PyPlan::number_pages)
        .def("draw", &PyPlan::draw)
        .def("result", &PyPlan::result)
        .def("pages", &PyPlan::pages)
        .def("lines", &PyPlan::lines)
        .def("from_right", &PyPlan::from_right)
        .def("replay", &PyPlan::replay, py::keep_alive<0, 1>());
    py::class_<Replay>(m, "Replay")
        .def("glyphs", &Replay::glyphs)
        .def("draw", [](const Replay& replay, const py::object& out) {
            uint8_t* pixels = pixels_of(out, replay.pages(), replay.frame().height,
                                        replay.frame().width);
            py::gil_scoped_release unlocked;
            replay.draw(pixels);
        });
    m.def("empty_pages", &empty_pages, py::arg("pages"), py::arg("height"), py::arg("width"));
    py::dict kinds, flags, aligns;
    kinds["plain"] = int{kPlain};
    kinds["noted"] = int{kNoted};
    kinds["space"] = int{kSpace};
    kinds["tab"] = int{kTab};
    kinds["newline"] = int{kNewline};
    kinds["return"] = int{kReturn};
    kinds["form_feed"] = int{kFormFeed};
    kinds["may_break"] = int{kMayBreak};
    kinds["soft_hyphen"] = int{kSoftHyphen};
    kinds["wide"] = int{kWide};
    kinds["ink_break"] = int{kInkBreak};
    flags["no_start"] = int{kNoStart};
    flags["no_end"] = int{kNoEnd};
    flags["glue"] = int{kGlue};
    flags["join"] = int{kJoin};
    flags["missing"] = int{kMissing};
    flags["invisible"] = int{kInvisible};
    flags["unshaped"] = int{kUnshaped};
    flags["prepare"] = int{kPrepare};
    aligns["left"] = int{kLeft};
    aligns["right"] = int{kRight};
    aligns["center"] = int{kCenter};
    aligns["justify"] = int{kJustify};
    m.attr("ALIGN") = aligns;
    m.attr("KINDS") = kinds;
    m.attr("FLAGS") = flags;
    m.attr("FIRST_COMPOSITE") = kFirstComposite;
    m.attr("UNITS") = kUnits;
}
