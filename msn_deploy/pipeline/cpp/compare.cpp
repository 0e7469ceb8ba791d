#include <algorithm>
#include <cmath>
#include <map>

#include "compare.hpp"

namespace msn {
namespace {

constexpr double enough_overlap = 0.9;

double overlap(const Json& one, const Json& other) {
    double both = 1, areas = 0, sides[2][2];
    for (std::size_t axis = 0; axis < 2; ++axis) {
        const double from[2] = {one.items()[axis].number(), other.items()[axis].number()};
        const double to[2] = {one.items()[axis + 2].number(), other.items()[axis + 2].number()};
        both *= std::max(std::min(to[0], to[1]) - std::max(from[0], from[1]), 0.0);
        for (int which = 0; which < 2; ++which) sides[which][axis] = to[which] - from[which];
    }
    for (const auto& side : sides) areas += side[0] * side[1];
    return areas > both ? both / (areas - both) : 1;
}

std::string missing_boxes(const Json& wanted, const Json& found, double slack, double show, const char* whose) {
    for (const Json& box : wanted.at("boxes").items()) {
        if (box.at("score").number() < show + slack) continue;  // rounding decides whether it is shown
        const bool there = std::any_of(found.at("boxes").items().begin(), found.at("boxes").items().end(), [&](const Json& other) {
            return other.at("label").text() == box.at("label").text() &&
                   std::fabs(other.at("score").number() - box.at("score").number()) <= slack &&
                   overlap(other.at("box"), box.at("box")) >= enough_overlap;
        });
        if (!there) return std::string(whose) + " alone has " + box.dump();
    }
    return "";
}

std::map<std::string, double> shares(const Json& mask) {
    std::map<std::string, double> made;
    for (const Json& segment : mask.at("segments").items()) made[segment.at("label").text()] = segment.at("share").number();
    return made;
}

}  // namespace

std::string difference(const Json& wanted, const Json& found, double share) {
    if (wanted.kind() != found.kind()) return wanted.dump() + " became " + found.dump();
    if (wanted.kind() == Json::Kind::number) {
        const double one = wanted.number(), other = found.number();
        const bool same = std::fabs(one - other) <= share * std::max({1.0, std::fabs(one), std::fabs(other)});
        return same ? "" : wanted.dump() + " became " + found.dump();
    }
    if (wanted.kind() == Json::Kind::list) {
        if (wanted.items().size() != found.items().size())
            return std::to_string(wanted.items().size()) + " items became " + std::to_string(found.items().size());
        for (std::size_t at = 0; at < wanted.items().size(); ++at) {
            const std::string inside = difference(wanted.items()[at], found.items()[at], share);
            if (!inside.empty()) return "item " + std::to_string(at) + ": " + inside;
        }
        return "";
    }
    if (wanted.kind() == Json::Kind::object) {
        if (wanted.members().size() != found.members().size()) return "other keys";
        for (const auto& [key, value] : wanted.members()) {
            const Json* other = found.find(key);
            const std::string inside = other == nullptr ? "it is missing" : difference(value, *other, share);
            if (!inside.empty()) return key + ": " + inside;
        }
        return "";
    }
    return wanted.dump() == found.dump() ? "" : wanted.dump() + " became " + found.dump();
}

std::string disagreement(const Json& wanted, const Json& found, double slack, double show) {
    if (wanted.find("boxes") != nullptr) {
        const std::string lost = missing_boxes(wanted, found, slack, show, "the ONNX file");
        return !lost.empty() ? lost : missing_boxes(found, wanted, slack, show, "the engine");
    }
    if (wanted.find("segments") != nullptr) {
        std::map<std::string, double> one = shares(wanted), other = shares(found);
        for (const auto& [label, share] : one)
            if (std::fabs(share - other[label]) > slack) return label + " has " + Json(share).dump() + " and " + Json(other[label]).dump();
        for (const auto& [label, share] : other)
            if (std::fabs(share - one[label]) > slack) return label + " has " + Json(one[label]).dump() + " and " + Json(share).dump();
        return "";
    }
    for (const Json& guess : wanted.at("top").items())
        for (const Json& other : found.at("top").items())
            if (guess.at("label").text() == other.at("label").text() &&
                std::fabs(guess.at("score").number() - other.at("score").number()) > slack)
                return guess.dump() + " became " + other.dump();
    const auto& top = wanted.at("top").items();
    const bool close = top.size() > 1 && top[0].at("score").number() - top[1].at("score").number() <= 2 * slack;
    if (!close && wanted.at("label").text() != found.at("label").text())
        return wanted.at("label").text() + " became " + found.at("label").text();
    return "";
}

}  // namespace msn
