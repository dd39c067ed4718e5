#include "values.h"

#include <algorithm>

namespace app::jinja {
namespace {

using V = const Value &;
using L = const List &;

Value add(V a, V b) {
    if (a.is_a<int64_t>() && b.is_a<int64_t>()) {
        return a.integer() + b.integer();
    }
    if (!a.is_a<List>() || !b.is_a<List>()) {
        return a.text() + b.text();
    }
    List all = a.list();
    all.insert(all.end(), b.list().begin(), b.list().end());
    return all;
}

}  // namespace

void fail(const std::string & what) {
    throw TemplateError(what);
}

bool is_true(const Value & value) {
    return value.is_a<bool>()          ? *value.as<bool>()
           : value.is_a<int64_t>()     ? value.integer() != 0
           : value.is_a<std::string>() ? !value.text().empty()
           : value.is_a<List>()        ? !value.list().empty()
           : value.is_a<Dict>()        ? !value.dict().empty()
                                       : value.is_a<Function>();
}

std::string to_text(const Value & value) {
    return value.is_a<Undefined>() ? ""
           : value.is_a<None>()    ? "None"
           : value.is_a<bool>()    ? (*value.as<bool>() ? "True" : "False")
           : value.is_a<int64_t>() ? std::to_string(value.integer())
                                   : value.text();
}

bool is_equal(const Value & a, const Value & b) {
    return a.is.index() == b.is.index() && to_text(a) == to_text(b);
}

bool contains(const Value & whole, const Value & part) {
    if (const List * list = whole.as<List>()) {
        return std::any_of(list->begin(), list->end(), [&](V value) { return is_equal(value, part); });
    }
    return whole.is_a<Dict>() ? whole.dict().count(part.text()) != 0
                              : !whole.is_a<Undefined>() && whole.text().find(part.text()) != std::string::npos;
}

Value member(const Value & of, const Value & key) {
    if (of.is_a<Undefined>() || (of.is_a<std::string>() && key.is_a<int64_t>())) {
        fail("a part is asked for of what is not defined, or of a text");
    }
    if (const Dict * dict = of.as<Dict>(); dict != nullptr && key.is_a<std::string>()) {
        const auto at = dict->find(key.text());
        return at == dict->end() ? Value() : at->second;
    }
    if (const List * list = of.as<List>(); list != nullptr && key.is_a<int64_t>()) {
        const int64_t n  = int64_t(list->size());
        const int64_t at = key.integer() < 0 ? key.integer() + n : key.integer();
        return at < 0 || at >= n ? Value() : (*list)[size_t(at)];
    }
    return {};
}

Value slice(const Value & of, const Value & from, const Value & to, const Value & step) {
    const bool    whole = !from.is_a<int64_t>() && !to.is_a<int64_t>();
    const int64_t by    = step.is_a<int64_t>() ? step.integer() : 1;
    if (by != 1 && !(by == -1 && whole)) {
        fail("a part of this kind is asked for");
    }
    const int64_t n     = int64_t(of.list().size());
    const auto    bound = [&](const Value & value, int64_t otherwise) {
        const int64_t at = value.is_a<int64_t>() ? value.integer() : otherwise;
        return std::clamp<int64_t>(at < 0 ? at + n : at, 0, n);
    };
    const int64_t first = bound(from, 0);
    List          part(of.list().begin() + first, of.list().begin() + std::max(first, bound(to, n)));
    if (by == -1) {
        std::reverse(part.begin(), part.end());
    }
    return part;
}

Value calculate(const std::string & sign, const Value & a, const Value & b) {
    if (sign == "==" || sign == "!=") {
        return is_equal(a, b) == (sign == "==");
    }
    if (sign == "in" || sign == "not in") {
        return contains(b, a) == (sign == "in");
    }
    if (sign == "+" || sign == "~") {
        return sign == "+" ? add(a, b) : Value(to_text(a) + to_text(b));
    }
    const int64_t x = a.integer();
    const int64_t y = b.integer();
    if (sign == "-" || sign == "*") {
        return sign == "-" ? x - y : x * y;
    }
    if (sign[0] == '<' || sign[0] == '>') {
        return sign == "<" ? x < y : sign == "<=" ? x <= y : sign == ">" ? x > y : x >= y;
    }
    if (y <= 0 || x < 0 || sign == "/") {
        fail("'" + sign + "' is asked of numbers like these");
    }
    return sign == "%" ? x % y : x / y;
}

}  // namespace app::jinja
