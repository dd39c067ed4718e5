// What the expressions of a template are made of: values as Python has them, and what can be done with them.
#pragma once

#include "jinja.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace app::jinja {

[[noreturn]] void fail(const std::string & what);  // throws TemplateError

struct Value;
struct Call;
struct Scopes;
using List     = std::vector<Value>;
using Dict     = std::map<std::string, Value>;
using Function = std::function<Value(Scopes &, const Call &)>;
struct Undefined {};
struct None {};

struct Value {
    // Lists and dicts are shared, as in Python: a namespace is assigned to where it is seen from.
    std::variant<Undefined, None, bool, int64_t, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>,
                 std::shared_ptr<Function>>
        is;

    Value() = default;
    template <typename T> Value(T value) : is(std::move(value)) {}
    Value(const char * text) : is(std::string(text)) {}
    Value(List list) : is(std::make_shared<List>(std::move(list))) {}
    Value(Dict dict) : is(std::make_shared<Dict>(std::move(dict))) {}
    Value(Function function) : is(std::make_shared<Function>(std::move(function))) {}

    // Null where it is of another kind.
    template <typename T> auto as() const {
        if constexpr (std::is_same_v<T, List> || std::is_same_v<T, Dict> || std::is_same_v<T, Function>) {
            const auto * pointer = std::get_if<std::shared_ptr<T>>(&is);
            return pointer != nullptr ? pointer->get() : nullptr;
        } else {
            return std::get_if<T>(&is);
        }
    }
    template <typename T> bool is_a() const { return as<T>() != nullptr; }
    // Throws TemplateError for another kind.
    template <typename T> const T & need() const {
        if (!is_a<T>()) {
            fail("a value is of another kind than what is done with it needs");
        }
        return *as<T>();
    }
    const std::string & text() const { return need<std::string>(); }
    int64_t             integer() const { return need<int64_t>(); }
    const List &        list() const { return need<List>(); }
    const Dict &        dict() const { return need<Dict>(); }
};

// What a function is given: in order, and by name.
struct Call {
    List list;
    Dict named;
};

bool        is_true(const Value & value);
std::string to_text(const Value & value);  // as it is written out

// An attribute or element of `of`; undefined where it has none.
Value member(const Value & of, const Value & key);
Value slice(const Value & of, const Value & from, const Value & to, const Value & step);

bool is_equal(const Value & a, const Value & b);  // texts, numbers and the like
bool contains(const Value & whole, const Value & part);

// Throws TemplateError for values that `sign` does not take.
Value calculate(const std::string & sign, const Value & a,
                const Value & b);  // + - * / // % ~ == != < <= > >= in, not in

}  // namespace app::jinja
