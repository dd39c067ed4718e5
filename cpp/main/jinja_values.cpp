#include "jinja_values.h"

#include <algorithm>
#include <cctype>

namespace app::jinja {

void fail(const std::string & what) {
    throw TemplateError(what);
}

Value list_of(List list) {
    return std::make_shared<List>(std::move(list));
}

const std::string & text_of(const Value & value) {
    if (const auto * text = value.as<std::string>()) {
        return *text;
    }
    fail("a text is expected where there is none");
}

int64_t integer_of(const Value & value) {
    if (const auto * number = value.as<int64_t>()) {
        return *number;
    }
    fail("a number is expected where there is none");
}

bool is_true(const Value & value) {
    if (const auto * flag = value.as<bool>()) {
        return *flag;
    }
    if (const auto * number = value.as<int64_t>()) {
        return *number != 0;
    }
    if (const auto * text = value.as<std::string>()) {
        return !text->empty();
    }
    if (value.as<std::shared_ptr<Macro>>()) {
        return true;
    }
    return value.list() ? !value.list()->empty() : value.dict() != nullptr && !value.dict()->empty();
}

std::string to_text(const Value & value) {
    if (value.as<Undefined>()) {
        return "";
    }
    if (value.as<None>()) {
        return "None";
    }
    if (const auto * flag = value.as<bool>()) {
        return *flag ? "True" : "False";
    }
    if (const auto * number = value.as<int64_t>()) {
        return std::to_string(*number);
    }
    if (!value.as<std::string>()) {
        fail("a list or mapping is written out");
    }
    return text_of(value);
}

namespace {

bool is_equal(const Value & a, const Value & b) {
    if (a.is.index() != b.is.index()) {
        return false;
    }
    if (const auto * text = a.as<std::string>()) {
        return *text == text_of(b);
    }
    if (const auto * number = a.as<int64_t>()) {
        return *number == integer_of(b);
    }
    if (const auto * flag = a.as<bool>()) {
        return *flag == *b.as<bool>();
    }
    if (a.list()) {
        return std::equal(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(), is_equal);
    }
    if (a.dict()) {
        fail("mappings are compared");
    }
    return true;
}

bool contains(const Value & whole, const Value & part) {
    if (const auto * text = whole.as<std::string>()) {
        return text->find(text_of(part)) != std::string::npos;
    }
    if (whole.list()) {
        return std::any_of(whole.list()->begin(), whole.list()->end(),
                           [&](const Value & value) { return is_equal(value, part); });
    }
    if (whole.dict()) {
        return whole.dict()->count(text_of(part)) != 0;
    }
    if (whole.as<Undefined>()) {
        return false;
    }
    fail("'in' is asked of what holds nothing");
}

bool is_ascii(const std::string & text) {
    return std::none_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; });
}

const std::vector<std::string> & white_space() {
    static const std::vector<std::string> all = {
        " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",
        "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
        "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"
    };
    return all;
}

std::string strip(std::string text, const std::vector<std::string> & characters, bool left, bool right) {
    for (bool again = left; again;) {
        again = false;
        for (const std::string & c : characters) {
            if (text.compare(0, c.size(), c) == 0) {
                text.erase(0, c.size());
                again = true;
            }
        }
    }
    for (bool again = right; again;) {
        again = false;
        for (const std::string & c : characters) {
            if (text.size() >= c.size() && text.compare(text.size() - c.size(), c.size(), c) == 0) {
                text.erase(text.size() - c.size());
                again = true;
            }
        }
    }
    return text;
}

}  // namespace

std::string without_space(const std::string & text, bool left, bool right) {
    return strip(text, white_space(), left, right);
}

namespace {

std::string in_case(std::string text, const std::string & how) {
    if (!is_ascii(text)) {
        fail("'" + how + "' is asked of letters beyond ASCII");
    }
    bool begins = true;
    for (char & c : text) {
        const bool          upper  = how == "upper" || (begins && how != "lower");
        const unsigned char letter = static_cast<unsigned char>(c);
        begins                     = how == "title" && std::isalpha(letter) == 0;
        c                          = char(upper ? std::toupper(letter) : std::tolower(letter));
    }
    return text;
}

Value split(const std::string & text, const std::string & at, size_t most) {
    List   parts;
    size_t from = 0;
    for (size_t to; parts.size() < most && (to = text.find(at, from)) != std::string::npos; from = to + at.size()) {
        parts.push_back(text.substr(from, to - from));
    }
    parts.push_back(text.substr(from));
    return list_of(std::move(parts));
}

}  // namespace

std::string replaced(std::string text, const std::string & from, const std::string & to) {
    for (size_t at = 0; !from.empty() && (at = text.find(from, at)) != std::string::npos; at += to.size()) {
        text.replace(at, from.size(), to);
    }
    return text;
}

namespace {

int64_t length(const Value & value) {
    if (const auto * text = value.as<std::string>()) {
        return std::count_if(text->begin(), text->end(), [](char c) { return (c & 0xC0) != 0x80; });
    }
    if (!value.list() && !value.dict()) {
        fail("the length of what has none is asked");
    }
    return int64_t(value.list() ? value.list()->size() : value.dict()->size());
}

// What a method of a text gives, if it is one.
Value call_on_text(const std::string & text, const std::string & name, const List & args) {
    const auto arg = [&](size_t i) { return text_of(i < args.size() ? args[i] : Value()); };
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
        std::vector<std::string> characters = args.empty() ? white_space() : std::vector<std::string>();
        for (const char c : args.empty() ? "" : arg(0)) {
            characters.push_back(std::string(1, c));
        }
        if (!args.empty() && !is_ascii(arg(0))) {
            fail("'" + name + "' takes characters beyond ASCII");
        }
        return strip(text, characters, name != "rstrip", name != "lstrip");
    }
    if (name == "upper" || name == "lower" || name == "title" || name == "capitalize") {
        return in_case(text, name);
    }
    if (name == "startswith") {
        return text.compare(0, arg(0).size(), arg(0)) == 0;
    }
    if (name == "endswith") {
        return text.size() >= arg(0).size() && text.compare(text.size() - arg(0).size(), arg(0).size(), arg(0)) == 0;
    }
    if (name == "split" && !args.empty() && !arg(0).empty()) {
        return split(text, arg(0), args.size() > 1 ? size_t(integer_of(args[1])) : std::string::npos);
    }
    if (name == "replace" && args.size() == 2) {
        return replaced(text, arg(0), arg(1));
    }
    fail("'" + name + "' is not known here");
}

}  // namespace

Value member(const Value & of, const Value & key) {
    if (of.as<Undefined>()) {
        fail("a part of what is not defined is asked for");
    }
    if (of.dict()) {
        const auto at = key.as<std::string>() ? of.dict()->find(text_of(key)) : of.dict()->end();
        return at == of.dict()->end() ? Value() : at->second;
    }
    if (of.list() && key.as<int64_t>()) {
        const int64_t n  = int64_t(of.list()->size());
        const int64_t at = integer_of(key) < 0 ? integer_of(key) + n : integer_of(key);
        return at < 0 || at >= n ? Value() : (*of.list())[size_t(at)];
    }
    if (of.as<std::string>() && key.as<int64_t>()) {
        fail("a character of a text is asked for");
    }
    return {};
}

Value slice(const Value & of, const Value & from, const Value & to, const Value & step) {
    const int64_t by = step.as<int64_t>() ? integer_of(step) : 1;
    if (!of.list() || (by != 1 && by != -1) || (by == -1 && (from.as<int64_t>() || to.as<int64_t>()))) {
        fail("a part of this kind is asked for");
    }
    const int64_t n     = int64_t(of.list()->size());
    const auto    bound = [&](const Value & value, int64_t otherwise) {
        const int64_t at = value.as<int64_t>() ? integer_of(value) : otherwise;
        return std::clamp<int64_t>(at < 0 ? at + n : at, 0, n);
    };
    const int64_t first = bound(from, 0);
    List          part(of.list()->begin() + first, of.list()->begin() + std::max(first, bound(to, n)));
    if (by == -1) {
        std::reverse(part.begin(), part.end());
    }
    return list_of(std::move(part));
}

Value call_method(const Value & of, const std::string & name, const List & args) {
    if (of.as<Undefined>() || of.as<None>()) {
        fail("'" + name + "' is asked of nothing");
    }
    if (of.dict() && name == "get" && !args.empty()) {
        const Value found = member(of, args[0]);
        return !found.as<Undefined>() ? found : args.size() > 1 ? args[1] : Value(None());
    }
    if (of.dict() && name == "items" && args.empty()) {
        List all;
        for (const auto & [key, value] : *of.dict()) {
            all.push_back(list_of({ key, value }));
        }
        return list_of(std::move(all));
    }
    return call_on_text(text_of(of), name, args);
}

bool test(const std::string & name, const Value & of, const List & args) {
    const bool is_text = of.as<std::string>() != nullptr;
    if (name == "defined" || name == "undefined") {
        return (of.as<Undefined>() == nullptr) == (name == "defined");
    }
    if (name == "none") {
        return of.as<None>() != nullptr;
    }
    if (name == "string") {
        return is_text;
    }
    if (name == "mapping") {
        return of.dict() != nullptr;
    }
    if (name == "iterable" || name == "sequence") {
        return is_text || of.list() != nullptr || of.dict() != nullptr;
    }
    if (name == "boolean") {
        return of.as<bool>() != nullptr;
    }
    if (name == "number" || name == "integer") {
        return of.as<int64_t>() != nullptr || (name == "number" && of.as<bool>() != nullptr);
    }
    if (name == "true" || name == "false") {
        return of.as<bool>() != nullptr && *of.as<bool>() == (name == "true");
    }
    if (name == "odd" || name == "even") {
        return (integer_of(of) % 2 != 0) == (name == "odd");
    }
    if ((name == "equalto" || name == "eq" || name == "==" || name == "in") && args.size() == 1) {
        return name == "in" ? contains(args[0], of) : is_equal(of, args[0]);
    }
    fail("the test '" + name + "' is not known here");
}

Value filter(const std::string & name, const Value & of, const List & args) {
    if (name == "trim" && args.empty()) {
        return strip(to_text(of), white_space(), true, true);
    }
    if (name == "length" || name == "count") {
        return length(of);
    }
    if ((name == "default" || name == "d") && !args.empty()) {
        return of.as<Undefined>() || (args.size() > 1 && is_true(args[1]) && !is_true(of)) ? args[0] : of;
    }
    if (name == "string") {
        return to_text(of);
    }
    if (name == "safe" || (name == "list" && of.list())) {
        return of;
    }
    if ((name == "first" || name == "last") && of.list()) {
        return member(of, name == "first" ? int64_t(0) : int64_t(-1));
    }
    if (name == "join" && of.list() && args.size() < 2) {
        std::string text;
        for (size_t i = 0; i < of.list()->size(); ++i) {
            text += (i == 0 || args.empty() ? "" : text_of(args[0])) + to_text((*of.list())[i]);
        }
        return text;
    }
    if (name == "items") {
        return call_method(of, name, args);
    }
    if ((name == "selectattr" || name == "rejectattr") && of.list() && !args.empty()) {
        List chosen;
        for (const Value & value : *of.list()) {
            const Value part = member(value, args[0]);
            const bool  holds =
                args.size() == 1 ? is_true(part) : test(text_of(args[1]), part, List(args.begin() + 2, args.end()));
            if (holds == (name == "selectattr")) {
                chosen.push_back(value);
            }
        }
        return list_of(std::move(chosen));
    }
    return call_on_text(text_of(of), name, args);
}

namespace {

Value add(const Value & a, const Value & b) {
    if (a.as<int64_t>() && b.as<int64_t>()) {
        return integer_of(a) + integer_of(b);
    }
    if (a.list() && b.list()) {
        List all = *a.list();
        all.insert(all.end(), b.list()->begin(), b.list()->end());
        return list_of(std::move(all));
    }
    return text_of(a) + text_of(b);
}

}  // namespace

Value calculate(const std::string & sign, const Value & a, const Value & b) {
    if (sign == "+") {
        return add(a, b);
    }
    if (sign == "~") {
        return to_text(a) + to_text(b);
    }
    const int64_t x = integer_of(a);
    const int64_t y = integer_of(b);
    if (sign == "-" || sign == "*") {
        return sign == "-" ? x - y : x * y;
    }
    if (y <= 0 || x < 0 || sign == "/") {
        fail("'" + sign + "' is asked of numbers like these");
    }
    return sign == "%" ? x % y : x / y;
}

bool compare(const std::string & sign, const Value & a, const Value & b) {
    if (sign == "==" || sign == "!=") {
        return is_equal(a, b) == (sign == "==");
    }
    if (sign == "in" || sign == "not in") {
        return contains(b, a) == (sign == "in");
    }
    const int64_t x = integer_of(a);
    const int64_t y = integer_of(b);
    return sign == "<" ? x < y : sign == "<=" ? x <= y : sign == ">" ? x > y : x >= y;
}

}  // namespace app::jinja
