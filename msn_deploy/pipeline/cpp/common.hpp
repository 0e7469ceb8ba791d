// What all parts share: errors with the exit codes of msn-deploy, named arrays, and a JSON value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace msn {

// Ends the program. code: 1 a check failed, 2 bad input, 3 something is missing here, as in msn-deploy.
struct Error : std::runtime_error {
    int code;
    Error(int code_, const std::string& text) : std::runtime_error(text), code(code_) {}
};

using Bytes = std::vector<std::uint8_t>;

// Reads a whole file. Throws Error(2) if it cannot be read, or has more than `most` bytes.
Bytes read_file(const std::string& path, std::size_t most = std::size_t(1) << 32);
std::string digest_of(const Bytes& content);  // SHA-256 as hex
std::string name_of(const std::string& path);  // without the folder
std::string folder_of(const std::string& path);  // with the slash, "" where there is none

// The element types of a network's inputs and outputs, by numpy's names.
enum class Type { float32, float16, uint8, int8, int32, int64, boolean };
Type type_named(const std::string& name);
std::size_t size_of(Type type);
float float_of_half(std::uint16_t half);
std::uint16_t half_of_float(float value);  // to the nearest, ties to even

// One output of a network, or what is fed to it; in rows, the first axis is the batch.
struct Array {
    std::string name;
    Type type = Type::float32;
    std::vector<std::int64_t> shape;
    Bytes bytes;

    std::int64_t count() const;  // of elements
    bool is_float() const { return type == Type::float32 || type == Type::float16; }
    double at(std::int64_t index) const;
    std::string sizes() const;  // "3x32x32"
};
using Arrays = std::vector<Array>;
const Array& array_named(const Arrays& arrays, const std::string& name);

// Elements in a shape. Throws Error(2) for a negative size, and for more than a machine holds.
std::int64_t elements_of(const std::vector<std::int64_t>& shape);

// A JSON value. Objects keep the order of their keys.
class Json {
public:
    enum class Kind { null, boolean, number, text, list, object };
    using Members = std::vector<std::pair<std::string, Json>>;

    Json() = default;
    explicit Json(bool value) : kind_(Kind::boolean), number_(value ? 1 : 0) {}
    explicit Json(double value) : kind_(Kind::number), number_(value) {}
    explicit Json(std::string value) : kind_(Kind::text), text_(std::move(value)) {}
    static Json list() { return Json(Kind::list); }
    static Json object() { return Json(Kind::object); }

    // Throws Error(2) that names `source` for what is not JSON, or deeper than 64 levels.
    static Json parse(const std::string& text, const std::string& source);
    std::string dump() const;  // in one line; numbers so that they read back to the same bits

    Kind kind() const { return kind_; }
    bool is_null() const { return kind_ == Kind::null; }
    const Json* find(const std::string& key) const;  // nullptr where there is none, or it is null
    const Json& at(const std::string& key) const;  // Error(2) where there is none
    bool truth() const;
    double number() const;
    std::int64_t whole() const;
    const std::string& text() const;
    const std::vector<Json>& items() const;
    const Members& members() const;
    void add(const std::string& key, Json value) { members_.emplace_back(key, std::move(value)); }
    void add(Json value) { items_.push_back(std::move(value)); }

private:
    explicit Json(Kind kind) : kind_(kind) {}
    Kind kind_ = Kind::null;
    double number_ = 0;
    std::string text_;
    std::vector<Json> items_;
    Members members_;
};

}  // namespace msn
