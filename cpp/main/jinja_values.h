// What the expressions of a template are made of: values as Python has them, and what can be done with them.
#pragma once

#include "jinja.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace app::jinja {

[[noreturn]] void fail(const std::string & what);  // throws TemplateError

struct Value;
struct Macro;
using List = std::vector<Value>;
using Dict = std::map<std::string, Value>;
struct Undefined {};
struct None {};

struct Value {
    // Lists and dicts are shared, as in Python: a namespace is assigned to where it is seen from.
    std::variant<Undefined, None, bool, int64_t, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>,
                 std::shared_ptr<Macro>>
        is;

    Value() = default;
    template <typename T> Value(T value) : is(std::move(value)) {}
    Value(const char * text) : is(std::string(text)) {}

    template <typename T> const T * as() const { return std::get_if<T>(&is); }
    const List * list() const { return shared<List>(); }
    const Dict * dict() const { return shared<Dict>(); }

private:
    template <typename T> const T * shared() const {
        const auto * pointer = as<std::shared_ptr<T>>();
        return pointer != nullptr ? pointer->get() : nullptr;
    }
};

Value list_of(List list);

// Throw TemplateError for another kind of value.
const std::string & text_of(const Value & value);
int64_t             integer_of(const Value & value);

bool        is_true(const Value & value);
std::string to_text(const Value & value);  // as it is written out

// `text` without white space at its ends, Unicode's included.
std::string without_space(const std::string & text, bool left, bool right);
std::string replaced(std::string text, const std::string & from, const std::string & to);

// An attribute or element of `of`; undefined where it has none.
Value member(const Value & of, const Value & key);
Value slice(const Value & of, const Value & from, const Value & to, const Value & step);

// All throw TemplateError for a name that is not known, and for values that they do not take.
Value call_method(const Value & of, const std::string & name, const List & args);
Value filter(const std::string & name, const Value & of, const List & args);
bool  test(const std::string & name, const Value & of, const List & args);
Value calculate(const std::string & sign, const Value & a, const Value & b);  // + - * / // % ~
bool  compare(const std::string & sign, const Value & a, const Value & b);    // == != < <= > >= in, not in

}  // namespace app::jinja
