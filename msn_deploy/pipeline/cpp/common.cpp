// Files, SHA-256 (FIPS 180-4), half precision and arrays.
#include "common.hpp"

#include <cstring>
#include <fstream>
#include <limits>
#include <map>

namespace msn {

Bytes read_file(const std::string& path, std::size_t most) {
    std::ifstream stream(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
    if (size < 0) throw Error(2, path + " cannot be read.");
    if (static_cast<unsigned long long>(size) > most)
        throw Error(2, path + " has " + std::to_string(size) + " bytes; up to " + std::to_string(most) + " are read.");
    Bytes content(static_cast<std::size_t>(size));
    stream.seekg(0);
    if (size > 0 && !stream.read(reinterpret_cast<char*>(content.data()), size)) throw Error(2, path + " cannot be read.");
    return content;
}

std::string name_of(const std::string& path) { return path.substr(folder_of(path).size()); }

std::string folder_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

namespace {

constexpr std::uint32_t rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t turned(std::uint32_t word, int by) { return word >> by | word << (32 - by); }

void mix(std::uint32_t (&state)[8], const std::uint8_t* block) {
    std::uint32_t words[64];
    for (int at = 0; at < 16; ++at)
        words[at] = std::uint32_t(block[4 * at]) << 24 | std::uint32_t(block[4 * at + 1]) << 16 |
                    std::uint32_t(block[4 * at + 2]) << 8 | block[4 * at + 3];
    for (int at = 16; at < 64; ++at) {
        const std::uint32_t near = words[at - 2], far = words[at - 15];
        words[at] = words[at - 16] + words[at - 7] + (turned(far, 7) ^ turned(far, 18) ^ far >> 3) +
                    (turned(near, 17) ^ turned(near, 19) ^ near >> 10);
    }
    std::uint32_t now[8];
    std::memcpy(now, state, sizeof now);
    for (int at = 0; at < 64; ++at) {
        const std::uint32_t one = now[7] + (turned(now[4], 6) ^ turned(now[4], 11) ^ turned(now[4], 25)) +
                                  ((now[4] & now[5]) ^ (~now[4] & now[6])) + rounds[at] + words[at];
        const std::uint32_t two = (turned(now[0], 2) ^ turned(now[0], 13) ^ turned(now[0], 22)) +
                                  ((now[0] & now[1]) ^ (now[0] & now[2]) ^ (now[1] & now[2]));
        for (int to = 7; to > 0; --to) now[to] = now[to - 1];
        now[4] += one;
        now[0] = one + two;
    }
    for (int at = 0; at < 8; ++at) state[at] += now[at];
}

}  // namespace

std::string digest_of(const Bytes& content) {
    std::uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const std::size_t whole = content.size() / 64 * 64, rest = content.size() - whole;
    for (std::size_t at = 0; at < whole; at += 64) mix(state, content.data() + at);
    std::uint8_t last[128] = {};
    if (rest > 0) std::memcpy(last, content.data() + whole, rest);
    last[rest] = 0x80;
    const std::size_t end = rest < 56 ? 64 : 128;
    const std::uint64_t bits = std::uint64_t(content.size()) * 8;
    for (std::size_t at = 0; at < 8; ++at) last[end - 1 - at] = static_cast<std::uint8_t>(bits >> (8 * at));
    for (std::size_t at = 0; at < end; at += 64) mix(state, last + at);
    std::string hex;
    for (const std::uint32_t word : state)
        for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
    return hex;
}

Type type_named(const std::string& name) {
    static const std::map<std::string, Type> known = {
        {"float32", Type::float32}, {"float16", Type::float16}, {"uint8", Type::uint8}, {"int8", Type::int8},
        {"int32", Type::int32},     {"int64", Type::int64},     {"bool", Type::boolean}};
    const auto found = known.find(name);
    if (found == known.end()) throw Error(2, "arrays of " + name + " are not read here.");
    return found->second;
}

std::size_t size_of(Type type) {
    switch (type) {
        case Type::int64: return 8;
        case Type::float32:
        case Type::int32: return 4;
        case Type::float16: return 2;
        case Type::uint8:
        case Type::int8:
        case Type::boolean: return 1;
    }
    return 1;
}

float float_of_half(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t(half >> 15) << 31, exponent = half >> 10 & 31, part = half & 1023;
    std::uint32_t bits = sign | (exponent + 112) << 23 | part << 13;
    if (exponent == 31) bits = sign | 0x7f800000 | part << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    if (exponent == 0) value = (sign ? -1.0f : 1.0f) * static_cast<float>(part) * 5.9604644775390625e-08f;  // 2^-24
    return value;
}

std::uint16_t half_of_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);  // not a number
    if (size >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and above
    if (size < 0x33000001) return static_cast<std::uint16_t>(sign);  // 2^-25 and below
    const int exponent = static_cast<int>(size >> 23) - 112;
    const std::uint32_t part = (size & 0x7fffff) | (exponent > 0 ? 0 : 0x800000);
    const int drop = exponent > 0 ? 13 : 14 - exponent;
    std::uint32_t made = part >> drop;
    const std::uint32_t left = part & ((1u << drop) - 1), half = 1u << (drop - 1);
    if (left > half || (left == half && (made & 1))) ++made;  // may carry into the exponent, which is right
    return static_cast<std::uint16_t>(sign | ((exponent > 0 ? std::uint32_t(exponent) << 10 : 0) + made));
}

std::int64_t elements_of(const std::vector<std::int64_t>& shape) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) {
        if (size < 0 || (size > 0 && count > (std::int64_t(1) << 40) / size)) throw Error(2, "an array has an impossible shape.");
        count *= size;
    }
    return count;
}

std::int64_t Array::count() const { return elements_of(shape); }

double Array::at(std::int64_t index) const {
    const std::uint8_t* place = bytes.data() + static_cast<std::size_t>(index) * size_of(type);
    switch (type) {
        case Type::float32: {
            float value;
            std::memcpy(&value, place, sizeof value);
            return static_cast<double>(value);
        }
        case Type::float16: {
            std::uint16_t value;
            std::memcpy(&value, place, sizeof value);
            return static_cast<double>(float_of_half(value));
        }
        case Type::int32: {
            std::int32_t value;
            std::memcpy(&value, place, sizeof value);
            return value;
        }
        case Type::int64: {
            std::int64_t value;
            std::memcpy(&value, place, sizeof value);
            return static_cast<double>(value);
        }
        case Type::int8: return static_cast<std::int8_t>(*place);
        case Type::uint8:
        case Type::boolean: return *place;
    }
    return std::numeric_limits<double>::quiet_NaN();
}

std::string Array::sizes() const {
    std::string made;
    for (const std::int64_t size : shape) made += (made.empty() ? "" : "x") + std::to_string(size);
    return made.empty() ? "one number" : made;
}

const Array& array_named(const Arrays& arrays, const std::string& name) {
    for (const Array& array : arrays)
        if (array.name == name) return array;
    throw Error(2, "the network has no output " + name + ": the settings are of another one.");
}

}  // namespace msn
