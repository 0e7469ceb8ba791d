// Boxes: from the numbers of a detector's head to those of an image, one function for each way that heads give them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "decode.hpp"

namespace msn {
namespace {

constexpr std::size_t most_candidates = 30000;  // of one image, the best of them

struct Box {
    double corners[4];  // x1, y1, x2, y2 in pixels of the frame
    double score;
    std::int64_t label;
    bool likeliest;  // it stands for the best class of its box
};

// What one image has of an output, without the first axis, as rows; of a head that is of all images, all of it.
struct Table {
    const Array* array;
    std::int64_t rows, columns;
    std::int64_t of_row, of_column, first = 0;
    double at(std::int64_t row, std::int64_t column) const { return array->at(first + row * of_row + column * of_column); }
};

[[noreturn]] void misfit(const Array& array, const Settings& settings) {
    throw Error(2, settings.onnx + " gives " + array.sizes() + ", which a head read as " + settings.boxes.decode + " does not.");
}

Table table_of(const Array& array, const Settings& settings, std::size_t rank) {
    const std::size_t skipped = settings.boxes.of_all ? 0 : 1;
    if (array.shape.size() != rank + skipped || (skipped == 1 && array.shape[0] < 1)) misfit(array, settings);
    const std::int64_t rows = array.shape[skipped], columns = rank > 1 ? array.shape[skipped + 1] : 1;
    return {&array, rows, columns, columns, 1};
}

void check_classes(std::int64_t count, const Settings& settings) {
    const std::int64_t known = static_cast<std::int64_t>(settings.classes.size());
    if (count < 1 || (known > 0 && count != known))
        throw Error(2, settings.onnx + " gives scores of " + std::to_string(count) + " classes; there are names of " + std::to_string(known) + ".");
}

void in_pixels(double (&box)[4], const Settings& settings) {
    const Boxes& way = settings.boxes;
    if (way.form == "cxcywh")
        for (int at = 0; at < 2; ++at) box[at] = box[at] - box[at + 2] / 2;
    if (way.form != "xyxy")
        for (int at = 0; at < 2; ++at) box[at + 2] = box[at] + box[at + 2];
    if (way.units == "share")
        for (int at = 0; at < 4; ++at) box[at] *= at % 2 == 0 ? settings.prepare.width : settings.prepare.height;
}

// The pairs of box and class that are likely enough, by class and then by box. score(row, label), corners(row, box).
template <typename Score, typename Corners>
std::vector<Box> likely(std::int64_t rows, std::int64_t classes, const Settings& settings, Score score, Corners corners) {
    struct Found {
        std::int64_t row, label;
        double score;
    };
    std::vector<std::int64_t> best(static_cast<std::size_t>(rows));
    std::vector<double> scores(static_cast<std::size_t>(rows * classes));
    std::vector<Found> found;
    for (std::int64_t row = 0; row < rows; ++row) {
        double* const line = scores.data() + row * classes;
        for (std::int64_t label = 0; label < classes; ++label) line[label] = score(row, label);
        best[std::size_t(row)] = std::max_element(line, line + classes) - line;  // the first of several
    }
    const auto take = [&](std::int64_t row, std::int64_t label) {
        const double value = scores[static_cast<std::size_t>(row * classes + label)];
        if (value > settings.boxes.score) found.push_back({row, label, value});
    };
    if (settings.boxes.best_alone) {
        for (std::int64_t row = 0; row < rows; ++row) take(row, best[std::size_t(row)]);
    } else {
        for (std::int64_t label = 0; label < classes; ++label)
            for (std::int64_t row = 0; row < rows; ++row) take(row, label);
    }
    if (found.size() > most_candidates) {
        std::vector<std::size_t> order(found.size());
        std::iota(order.begin(), order.end(), std::size_t(0));
        std::stable_sort(order.begin(), order.end(), [&](std::size_t one, std::size_t other) { return found[one].score > found[other].score; });
        order.resize(most_candidates);
        std::sort(order.begin(), order.end());
        std::vector<Found> kept;
        for (const std::size_t at : order) kept.push_back(found[at]);
        found = kept;
    }
    std::vector<Box> made;
    for (const Found& each : found) {
        Box box{{0, 0, 0, 0}, each.score, each.label, each.label == best[std::size_t(each.row)]};
        corners(each.row, box.corners);
        in_pixels(box.corners, settings);
        made.push_back(box);
    }
    return made;
}

double sigmoid(double value) { return 0.5 * (1 + std::tanh(0.5 * value)); }

std::vector<Box> yolov5(const Array& array, const Settings& settings) {
    const Table all = table_of(array, settings, 2);
    check_classes(all.columns - 5, settings);
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 0; row < all.rows; ++row)
        if (all.at(row, 4) > settings.boxes.score) rows.push_back(row);
    return likely(
        static_cast<std::int64_t>(rows.size()), all.columns - 5, settings,
        [&](std::int64_t row, std::int64_t label) { return all.at(rows[std::size_t(row)], 4) * all.at(rows[std::size_t(row)], 5 + label); },
        [&](std::int64_t row, double (&box)[4]) {
            for (int at = 0; at < 4; ++at) box[at] = all.at(rows[std::size_t(row)], at);
        });
}

std::vector<Box> yolov8(const Array& array, const Settings& settings) {
    Table all = table_of(array, settings, 2);
    const std::int64_t wanted = 4 + static_cast<std::int64_t>(settings.classes.size());
    const bool told = all.rows == wanted || all.columns == wanted;
    if (all.rows == (told ? wanted : std::min(all.rows, all.columns))) {  // (4 + classes, boxes)
        std::swap(all.rows, all.columns);
        std::swap(all.of_row, all.of_column);
    }
    check_classes(all.columns - 4, settings);
    return likely(
        all.rows, all.columns - 4, settings, [&](std::int64_t row, std::int64_t label) { return all.at(row, 4 + label); },
        [&](std::int64_t row, double (&box)[4]) {
            for (int at = 0; at < 4; ++at) box[at] = all.at(row, at);
        });
}

std::vector<Box> fcos(const Array& array, const Settings& settings) {
    if (array.shape.size() != 4 || array.shape[0] < 1) misfit(array, settings);
    const std::int64_t classes = array.shape[1] - 4, high = array.shape[2], wide = array.shape[3], cells = high * wide;
    check_classes(classes, settings);
    if (cells < 1) misfit(array, settings);
    double steps[2] = {settings.prepare.width / static_cast<double>(wide), settings.prepare.height / static_cast<double>(high)};
    if (settings.boxes.stride != 0) {
        steps[0] = steps[1] = settings.boxes.stride;
    } else if (steps[0] != steps[1] || steps[0] != std::floor(steps[0])) {
        throw Error(2, settings.onnx + " gives " + std::to_string(wide) + "x" + std::to_string(high) +
                           " cells, which does not tell how large they are.\nSay it: msn-deploy export ... --read stride=PIXELS");
    }
    return likely(
        cells, classes, settings, [&](std::int64_t cell, std::int64_t label) { return sigmoid(array.at(label * cells + cell)); },
        [&](std::int64_t cell, double (&box)[4]) {
            const double centre[2] = {static_cast<double>(cell % wide) + 0.5, static_cast<double>(cell / wide) + 0.5};
            for (int at = 0; at < 4; ++at) {
                const double reach = array.at((classes + at) * cells + cell) * (at < 2 ? -1 : 1);
                box[at] = (centre[at % 2] + reach) * steps[at % 2];
            }
        });
}

std::vector<Box> pair(const Array& boxes, const Array& numbers, const Settings& settings) {
    const Boxes& way = settings.boxes;
    const Table places = table_of(boxes, settings, 2), all = table_of(numbers, settings, 2);
    const std::int64_t first = way.background == "first" ? 1 : 0, classes = all.columns - (way.background == "none" ? 0 : 1);
    if (places.columns != 4 || places.rows != all.rows) misfit(boxes, settings);
    check_classes(classes, settings);
    std::vector<double> scores;
    for (std::int64_t row = 0; row < all.rows; ++row) {
        double largest = -std::numeric_limits<double>::infinity(), sum = 0;
        for (std::int64_t column = 0; column < all.columns; ++column) largest = std::max(largest, all.at(row, column));
        const bool softmax = way.ending != "log-softmax" && way.ending != "softmax" && way.ending != "sigmoid" && way.background != "none";
        std::vector<double> line;
        for (std::int64_t column = 0; column < all.columns; ++column) {
            const double value = all.at(row, column);
            double share = value;
            if (way.ending == "log-softmax") share = std::exp(value);
            else if (softmax) share = std::exp(value - largest);
            else if (way.ending != "softmax" && way.ending != "sigmoid") share = sigmoid(value);
            line.push_back(share);
            sum += share;
        }
        for (std::int64_t label = 0; label < classes; ++label) scores.push_back(line[std::size_t(first + label)] / (softmax ? sum : 1));
    }
    return likely(
        all.rows, classes, settings, [&](std::int64_t row, std::int64_t label) { return scores[std::size_t(row * classes + label)]; },
        [&](std::int64_t row, double (&box)[4]) {
            for (int at = 0; at < 4; ++at) box[at] = places.at(row, at);
        });
}

// Appends a box that the network has chosen itself, if it scores enough.
void take_listed(std::vector<Box>& made, const double (&corners)[4], double score, double class_number, const Settings& settings) {
    if (!(score > settings.boxes.score)) return;
    const bool first = settings.boxes.background == "first";
    const double label = std::nearbyint(class_number) - (first ? 1 : 0);
    const std::int64_t known = static_cast<std::int64_t>(settings.classes.size());
    if (label < 0 || label > 1e15 || (known > 0 && label >= static_cast<double>(known)))
        throw Error(2, settings.onnx + " finds class " + Json(label + (first ? 1 : 0)).dump() + "; there are " + std::to_string(known) + " classes.");
    Box box{{corners[0], corners[1], corners[2], corners[3]}, score, static_cast<std::int64_t>(label), true};
    in_pixels(box.corners, settings);
    made.push_back(box);
}

std::vector<Box> rows(const Array& array, const Settings& settings) {
    const bool with_image = settings.boxes.decode == "rows_with_image";
    const Table all = table_of(array, settings, 2);
    if (all.columns != (with_image ? 7 : 6)) misfit(array, settings);
    std::vector<Box> made;
    for (std::int64_t row = 0; row < all.rows; ++row) {
        if (with_image && all.at(row, 0) != 0) continue;
        const std::int64_t from = with_image ? 1 : 0, score = with_image ? 6 : 4, label = 5;
        const double corners[4] = {all.at(row, from), all.at(row, from + 1), all.at(row, from + 2), all.at(row, from + 3)};
        take_listed(made, corners, all.at(row, score), all.at(row, label), settings);
    }
    return made;
}

std::vector<Box> lists(const Arrays& outputs, const Settings& settings) {
    const Boxes& way = settings.boxes;
    const Array &boxes = array_named(outputs, way.boxes), &numbers = array_named(outputs, way.scores), &classes = array_named(outputs, way.classes);
    const Table places = table_of(boxes, settings, 2), scores = table_of(numbers, settings, 1), labels = table_of(classes, settings, 1);
    std::int64_t count = places.rows;
    if (places.columns != 4 || scores.rows != count || labels.rows != count) misfit(boxes, settings);
    if (!way.count.empty()) {
        const Array& told = array_named(outputs, way.count);
        if (told.count() < 1) misfit(told, settings);
        count = std::min(count, std::max<std::int64_t>(0, static_cast<std::int64_t>(told.at(0))));
    }
    std::vector<Box> made;
    for (std::int64_t row = 0; row < count; ++row) {
        const double corners[4] = {places.at(row, 0), places.at(row, 1), places.at(row, 2), places.at(row, 3)};
        for (const double number : {corners[0], corners[1], corners[2], corners[3], scores.at(row, 0), labels.at(row, 0)})
            if (!std::isfinite(number)) throw Error(1, settings.onnx + ": box " + std::to_string(row) + " is not finite: there is no answer.");
        take_listed(made, corners, scores.at(row, 0), labels.at(row, 0), settings);
    }
    return made;
}

double area(const Box& box) {
    return std::max(box.corners[2] - box.corners[0], 0.0) * std::max(box.corners[3] - box.corners[1], 0.0);
}

double overlap(const Box& one, const Box& other) {
    double both = std::max(std::min(one.corners[2], other.corners[2]) - std::max(one.corners[0], other.corners[0]), 0.0);
    both *= std::max(std::min(one.corners[3], other.corners[3]) - std::max(one.corners[1], other.corners[1]), 0.0);
    return both / std::max(area(one) + area(other) - both, std::numeric_limits<double>::min());
}

// The best first, at most `most`: those that no better one of their class overlaps by too much.
std::vector<Box> kept(std::vector<Box> boxes, const Boxes& way) {
    std::stable_sort(boxes.begin(), boxes.end(), [](const Box& one, const Box& other) { return one.score > other.score; });
    std::vector<Box> made;
    for (const Box& box : boxes) {
        if (made.size() >= way.most) break;
        const bool covered = way.suppresses && std::any_of(made.begin(), made.end(), [&](const Box& better) {
                                 return better.label == box.label && overlap(better, box) > way.overlap;
                             });
        if (!covered) made.push_back(box);
    }
    return made;
}

bool same_place(const Box& one, const Box& other) { return std::equal(one.corners, one.corners + 4, other.corners); }

}  // namespace

Json boxes_of(const Arrays& outputs, const Placed& where, const Settings& settings) {
    const Boxes& way = settings.boxes;
    if (way.decode != "lists")  // of which only as many rows are written as there are boxes
        for (const std::string& name : {way.output, way.boxes, way.scores})
            if (!name.empty()) require_finite(array_named(outputs, name), settings);
    std::vector<Box> found;
    if (way.decode == "yolov5") found = yolov5(array_named(outputs, way.output), settings);
    else if (way.decode == "yolov8") found = yolov8(array_named(outputs, way.output), settings);
    else if (way.decode == "fcos") found = fcos(array_named(outputs, way.output), settings);
    else if (way.decode == "pair") found = pair(array_named(outputs, way.boxes), array_named(outputs, way.scores), settings);
    else if (way.decode == "lists") found = lists(outputs, settings);
    else found = rows(array_named(outputs, way.output), settings);
    std::vector<Box> inside;
    for (Box& box : kept(found, way)) {
        const double scales[2] = {where.scale_x, where.scale_y};
        const int offsets[2] = {where.left, where.top}, ends[2] = {where.width, where.height};
        for (int at = 0; at < 4; ++at) {
            const double place = (box.corners[at] - offsets[at % 2]) / scales[at % 2];
            box.corners[at] = std::min(std::max(place, 0.0), static_cast<double>(ends[at % 2]));
        }
        if (box.corners[2] > box.corners[0] && box.corners[3] > box.corners[1]) inside.push_back(box);
    }
    Json list = Json::list();
    for (std::size_t at = 0; at < inside.size(); ++at) {
        const Box& box = inside[at];
        const auto earlier = inside.begin() + static_cast<std::ptrdiff_t>(at);
        if (box.score < way.show || !box.likeliest) continue;
        if (std::any_of(inside.begin(), earlier, [&](const Box& other) { return same_place(box, other); })) continue;
        Json corners = Json::list(), each = Json::object();
        for (const double corner : box.corners) corners.add(Json(corner));
        each.add("label", Json(settings.label(box.label)));
        each.add("score", Json(box.score));
        each.add("box", corners);
        list.add(each);
    }
    Json made = Json::object();
    made.add("boxes", list);
    return made;
}

}  // namespace msn
