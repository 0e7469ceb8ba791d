// JSON, as far as sidecars, settings and answers need it.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "common.hpp"

namespace msn {
namespace {

constexpr int deepest = 64;

class Parser {
public:
    Parser(const std::string& text, const std::string& source) : text_(text), source_(source) {}

    Json whole() {
        Json value = any(0);
        blanks();
        if (at_ != text_.size()) fail();
        return value;
    }

private:
    [[noreturn]] void fail() const {
        throw Error(2, source_ + " is not JSON: byte " + std::to_string(at_) + " of " + std::to_string(text_.size()) + ".");
    }

    void blanks() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
            ++at_;
    }

    bool takes(char wanted) {
        blanks();
        if (at_ >= text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    bool takes_word(const char* word) {
        const std::size_t length = std::char_traits<char>::length(word);
        if (text_.compare(at_, length, word) != 0) return false;
        at_ += length;
        return true;
    }

    Json any(int depth) {
        if (depth > deepest) fail();
        blanks();
        if (at_ >= text_.size()) fail();
        if (takes('{')) return object(depth);
        if (takes('[')) return list(depth);
        if (text_[at_] == '"') return Json(text());
        if (takes_word("true")) return Json(true);
        if (takes_word("false")) return Json(false);
        if (takes_word("null")) return Json();
        return number();
    }

    Json object(int depth) {
        Json made = Json::object();
        if (takes('}')) return made;
        do {
            blanks();
            if (at_ >= text_.size() || text_[at_] != '"') fail();
            std::string key = text();
            if (!takes(':')) fail();
            made.add(key, any(depth + 1));
        } while (takes(','));
        if (!takes('}')) fail();
        return made;
    }

    Json list(int depth) {
        Json made = Json::list();
        if (takes(']')) return made;
        do made.add(any(depth + 1));
        while (takes(','));
        if (!takes(']')) fail();
        return made;
    }

    Json number() {
        const std::size_t start = at_;
        while (at_ < text_.size() && (std::string("+-.eE").find(text_[at_]) != std::string::npos ||
                                      (text_[at_] >= '0' && text_[at_] <= '9')))
            ++at_;
        const std::string digits = text_.substr(start, at_ - start);
        char* end = nullptr;
        const double value = std::strtod(digits.c_str(), &end);
        if (digits.empty() || *end != '\0' || !std::isfinite(value)) fail();
        return Json(value);
    }

    std::string text() {
        std::string made;
        for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (static_cast<unsigned char>(text_[at_]) < 0x20) fail();
            if (text_[at_] != '\\') {
                made += text_[at_];
                continue;
            }
            if (++at_ >= text_.size()) fail();
            const std::string codes = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
            const std::size_t which = codes.find(text_[at_]);
            if (which != std::string::npos)
                made += meant[which];
            else if (text_[at_] == 'u')
                utf8(made, point());
            else
                fail();
        }
        if (at_ >= text_.size()) fail();
        ++at_;
        return made;
    }

    unsigned four() {  // hexadecimal digits behind the u that at_ is at
        unsigned value = 0;
        for (int step = 0; step < 4; ++step) {
            const char digit = ++at_ < text_.size() ? text_[at_] : '?';
            const std::size_t worth = std::string("0123456789abcdef").find(digit >= 'A' && digit <= 'F' ? char(digit + 32) : digit);
            if (worth == std::string::npos) fail();
            value = value * 16 + static_cast<unsigned>(worth);
        }
        return value;
    }

    unsigned point() {
        const unsigned high = four();
        if (high < 0xd800 || high > 0xdfff) return high;
        if (high > 0xdbff || text_.compare(at_ + 1, 2, "\\u") != 0) fail();
        at_ += 2;
        const unsigned low = four();
        if (low < 0xdc00 || low > 0xdfff) fail();
        return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    }

    static void utf8(std::string& out, unsigned code) {
        if (code < 0x80) {
            out += static_cast<char>(code);
            return;
        }
        int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        out += static_cast<char>((0xff00 >> (more + 1) & 0xff) | code >> (6 * more));
        while (more-- > 0) out += static_cast<char>(0x80 | (code >> (6 * more) & 0x3f));
    }

    const std::string& text_;
    const std::string& source_;
    std::size_t at_ = 0;
};

std::string quoted(const std::string& text) {
    std::string made = "\"";
    for (const char letter : text) {
        const unsigned char code = static_cast<unsigned char>(letter);
        if (letter == '"' || letter == '\\') {
            made += '\\';
            made += letter;
        } else if (code < 0x20 || code == 0x7f) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(code));
            made += escape;
        } else {
            made += letter;
        }
    }
    return made + '"';
}

[[noreturn]] void wrong(const char* wanted) {
    throw Error(2, std::string("a settings file or sidecar has no ") + wanted + " where there has to be one.");
}

}  // namespace

Json Json::parse(const std::string& text, const std::string& source) { return Parser(text, source).whole(); }

std::string Json::dump() const {
    std::string made, between;
    switch (kind_) {
        case Kind::null: return "null";
        case Kind::boolean: return number_ != 0 ? "true" : "false";
        case Kind::text: return quoted(text_);
        case Kind::number: {
            char digits[32];
            std::snprintf(digits, sizeof digits, "%.17g", number_);
            return digits;
        }
        case Kind::list:
            for (const Json& item : items_) made += (made.empty() ? "" : ", ") + item.dump();
            return "[" + made + "]";
        case Kind::object:
            for (const auto& [key, value] : members_) made += (made.empty() ? "" : ", ") + quoted(key) + ": " + value.dump();
            return "{" + made + "}";
    }
    return made;
}

const Json* Json::find(const std::string& key) const {
    if (kind_ != Kind::object) wrong("object");
    for (const auto& [name, value] : members_)
        if (name == key && !value.is_null()) return &value;
    return nullptr;
}

const Json& Json::at(const std::string& key) const {
    const Json* found = find(key);
    if (found == nullptr) throw Error(2, "a settings file or sidecar says nothing of \"" + key + "\".");
    return *found;
}

bool Json::truth() const {
    if (kind_ != Kind::boolean) wrong("true or false");
    return number_ != 0;
}

double Json::number() const {
    if (kind_ != Kind::number) wrong("number");
    return number_;
}

std::int64_t Json::whole() const {
    const double value = number();
    if (value != std::floor(value) || std::fabs(value) > 9007199254740992.0) wrong("whole number");
    return static_cast<std::int64_t>(value);
}

const std::string& Json::text() const {
    if (kind_ != Kind::text) wrong("text");
    return text_;
}

const std::vector<Json>& Json::items() const {
    if (kind_ != Kind::list) wrong("list");
    return items_;
}

const Json::Members& Json::members() const {
    if (kind_ != Kind::object) wrong("object");
    return members_;
}

}  // namespace msn
