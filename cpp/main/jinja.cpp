#include "jinja.h"

#include <algorithm>
#include <cctype>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <variant>

namespace app {
namespace {

[[noreturn]] void fail(const std::string & what) {
    throw TemplateError(what);
}

// ---- values ----

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
    const List *                    list() const { return as<std::shared_ptr<List>>() ? as<std::shared_ptr<List>>()->get() : nullptr; }
    const Dict *                    dict() const { return as<std::shared_ptr<Dict>>() ? as<std::shared_ptr<Dict>>()->get() : nullptr; }
};

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

// ---- text, as Python treats it ----

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

std::string in_case(std::string text, const std::string & how) {
    if (!is_ascii(text)) {
        fail("'" + how + "' is asked of letters beyond ASCII");
    }
    bool begins = true;
    for (char & c : text) {
        const bool upper = how == "upper" || (begins && how != "lower");
        begins           = how == "title" && std::isalpha(static_cast<unsigned char>(c)) == 0;
        c                = char(upper ? std::toupper(static_cast<unsigned char>(c)) : std::tolower(static_cast<unsigned char>(c)));
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

std::string replaced(std::string text, const std::string & from, const std::string & to) {
    for (size_t at = 0; !from.empty() && (at = text.find(from, at)) != std::string::npos; at += to.size()) {
        text.replace(at, from.size(), to);
    }
    return text;
}

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

// Counts how deep a template nests: the stack has an end.
struct Nested {
    explicit Nested(int & depth) : depth(depth) {
        if (++depth > 100) {
            fail("it nests too deep");
        }
    }
    ~Nested() { --depth; }
    Nested(const Nested &)             = delete;
    Nested & operator=(const Nested &) = delete;

    int & depth;
};

// ---- what a template is read into ----

// The variables, scope by scope.
struct Scopes {
    std::vector<Dict> all   = std::vector<Dict>(1);
    int               depth = 0;  // of macros

    Value get(const std::string & name) const {
        for (auto scope = all.rbegin(); scope != all.rend(); ++scope) {
            if (const auto at = scope->find(name); at != scope->end()) {
                return at->second;
            }
        }
        return {};
    }
};

using Expression = std::function<Value(Scopes &)>;
using Node       = std::function<void(Scopes &, std::string &)>;
using Nodes      = std::vector<Node>;

// A piece of the template with a name and parameters.
struct Macro {
    std::vector<std::string> names;
    std::vector<Expression>  defaults;  // one for each
    Nodes                    nodes;
};

void write(const Nodes & nodes, Scopes & scopes, std::string & out) {
    for (const Node & node : nodes) {
        node(scopes, out);
    }
}

// ---- expressions ----

struct Token {
    enum Kind { name, number, text, sign, end } kind;
    std::string is;
};

struct CallArguments {
    std::vector<Expression>           list;
    std::map<std::string, Expression> named;

    List values(Scopes & scopes) const {
        List all;
        for (const Expression & one : list) {
            all.push_back(one(scopes));
        }
        return all;
    }
};

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

Value call_macro(const Macro & macro, const CallArguments & args, Scopes & scopes) {
    const Nested nested(scopes.depth);
    Scopes       inside;
    inside.all[0] = scopes.all[0];
    inside.depth  = scopes.depth;
    inside.all.emplace_back();
    const List values = args.values(scopes);
    for (size_t i = 0; i < macro.names.size(); ++i) {
        const auto named = args.named.find(macro.names[i]);
        inside.all[1][macro.names[i]] = i < values.size()         ? values[i] :
                                        named != args.named.end() ? named->second(scopes) :
                                                                    macro.defaults[i](inside);
    }
    std::string text;
    write(macro.nodes, inside, text);
    return text;
}

Value call_function(const std::string & name, const CallArguments & args, Scopes & scopes) {
    const Value of = scopes.get(name);
    if (const auto * macro = of.as<std::shared_ptr<Macro>>()) {
        return call_macro(**macro, args, scopes);
    }
    const List values = args.values(scopes);
    if (name == "raise_exception" && values.size() == 1) {
        fail("it says '" + to_text(values[0]) + "'");
    }
    if (name == "namespace" && values.empty()) {
        Dict dict;
        for (const auto & [key, value] : args.named) {
            dict[key] = value(scopes);
        }
        return std::make_shared<Dict>(std::move(dict));
    }
    if (name == "strftime_now" && values.size() == 1) {
        const std::time_t now = std::time(nullptr);
        char              text[256];
        return std::string(text, std::strftime(text, sizeof(text), text_of(values[0]).c_str(), std::localtime(&now)));
    }
    if (name == "range" && !values.empty() && values.size() < 4) {
        const int64_t first = values.size() == 1 ? 0 : integer_of(values[0]);
        const int64_t last  = integer_of(values[values.size() == 1 ? 0 : 1]);
        const int64_t step  = values.size() == 3 ? integer_of(values[2]) : 1;
        List          all;
        for (int64_t i = first; step > 0 ? i < last : i > last; i += step) {
            if (step == 0 || all.size() == 10000) {
                fail("a range is too long");
            }
            all.push_back(i);
        }
        return list_of(std::move(all));
    }
    fail("'" + name + "' is not known here");
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

// Reads the tokens of one tag. Each function reads what binds as strongly as its name says, or stronger.
class ExpressionReader {
public:
    explicit ExpressionReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    const Token & next() const { return tokens_[at_]; }
    bool          at_end() const { return next().kind == Token::end; }

    bool take(const std::string & what) {
        const bool is_it = (next().kind == Token::sign || next().kind == Token::name) && next().is == what;
        at_ += is_it ? 1 : 0;
        return is_it;
    }
    void expect(const std::string & what) {
        if (!take(what)) {
            fail("'" + what + "' is missing before '" + next().is + "'");
        }
    }
    std::string name() {
        if (next().kind != Token::name) {
            fail("a name is missing before '" + next().is + "'");
        }
        return tokens_[at_++].is;
    }

    Expression expression() {
        const Expression value = disjunction();
        if (!take("if")) {
            return value;
        }
        const Expression condition = disjunction();
        const Expression otherwise = take("else") ? expression() : [](Scopes &) { return Value(); };
        return [=](Scopes & s) { return is_true(condition(s)) ? value(s) : otherwise(s); };
    }

    Expression disjunction() {
        Expression left = conjunction();
        while (take("or")) {
            left = [left, right = conjunction()](Scopes & s) {
                const Value value = left(s);
                return is_true(value) ? value : right(s);
            };
        }
        return left;
    }

private:
    Expression conjunction() {
        Expression left = negation();
        while (take("and")) {
            left = [left, right = negation()](Scopes & s) {
                const Value value = left(s);
                return is_true(value) ? right(s) : value;
            };
        }
        return left;
    }

    Expression negation() {
        const Nested nested(depth_);
        if (take("not")) {
            return [of = negation()](Scopes & s) { return Value(!is_true(of(s))); };
        }
        return comparison();
    }

    Expression comparison() {
        Expression left = operation({ "+", "-" }, 0);
        for (const char * sign : { "==", "!=", "<=", ">=", "<", ">", "in", "not" }) {
            if (take(sign)) {
                const std::string which = sign == std::string("not") ? "not in" : sign;
                if (which == "not in") {
                    expect("in");
                }
                return [which, left, right = operation({ "+", "-" }, 0)](Scopes & s) {
                    return Value(compare(which, left(s), right(s)));
                };
            }
        }
        return left;
    }

    // Sums; within them texts joined by ~; within them products.
    Expression operation(const std::vector<std::string> & signs, int depth) {
        const auto inner = [&] {
            return depth == 0 ? operation({ "~" }, 1) :
                   depth == 1 ? operation({ "*", "//", "/", "%" }, 2) : unary();
        };
        Expression left = inner();
        for (bool more = true; more;) {
            more = false;
            for (const std::string & sign : signs) {
                if (take(sign)) {
                    left = [sign, left, right = inner()](Scopes & s) {
                        const Value a = left(s);
                        return calculate(sign, a, right(s));
                    };
                    more = true;
                }
            }
        }
        return left;
    }

    Expression unary() {
        const Nested nested(depth_);
        if (take("-")) {
            return [of = unary()](Scopes & s) { return Value(-integer_of(of(s))); };
        }
        Expression value = primary();
        for (;;) {
            if (take(".")) {
                value = attribute(value);
            } else if (take("[")) {
                value = subscript(value);
            } else if (take("|")) {
                value = [of = value, what = name(), args = optional_arguments()](Scopes & s) {
                    if (!args.named.empty()) {
                        fail("'" + what + "' has named arguments");
                    }
                    return filter(what, of(s), args.values(s));
                };
            } else if (take("is")) {
                const bool        negated = take("not");
                const std::string what    = name();
                CallArguments        args    = optional_arguments();
                if (args.list.empty() && (next().kind == Token::text || next().kind == Token::number)) {
                    args.list.push_back(primary());
                }
                value = [=, of = value](Scopes & s) { return Value(test(what, of(s), args.values(s)) != negated); };
            } else {
                return value;
            }
        }
    }

    Expression attribute(const Expression & of) {
        const std::string what = name();
        if (next().is == "(" && next().kind == Token::sign) {
            return [of, what, args = optional_arguments()](Scopes & s) {
                return call_method(of(s), what, args.values(s));
            };
        }
        return [of, what](Scopes & s) { return member(of(s), what); };
    }

    Expression subscript(const Expression & of) {
        const Expression        nothing = [](Scopes &) { return Value(); };
        std::vector<Expression> bounds  = { nothing };
        while (!take("]")) {
            if (take(":")) {
                bounds.push_back(nothing);
            } else {
                bounds.back() = expression();
            }
        }
        if (bounds.size() == 1) {
            return [of, key = bounds[0]](Scopes & s) { return member(of(s), key(s)); };
        }
        bounds.resize(3, nothing);
        return [of, bounds](Scopes & s) { return slice(of(s), bounds[0](s), bounds[1](s), bounds[2](s)); };
    }

    CallArguments optional_arguments() {
        CallArguments args;
        if (!take("(")) {
            return args;
        }
        while (!take(")")) {
            if (next().kind == Token::name && tokens_[at_ + 1].is == "=" && tokens_[at_ + 1].kind == Token::sign) {
                const std::string key = name();
                expect("=");
                args.named[key] = expression();
            } else {
                args.list.push_back(expression());
            }
            if (!take(",")) {
                expect(")");
                break;
            }
        }
        return args;
    }

    Expression list(const Expression & first, const std::string & end) {
        std::vector<Expression> all = { first };
        for (take(","); !take(end); all.push_back(expression()), take(",")) {
        }
        return [all](Scopes & s) {
            List list;
            for (const Expression & one : all) {
                list.push_back(one(s));
            }
            return list_of(std::move(list));
        };
    }

    Expression primary() {
        const Token token = next();
        if (take("(")) {
            const Expression value = expression();
            if (take(")")) {
                return value;
            }
            expect(",");
            return list(value, ")");
        }
        if (take("[")) {
            return take("]") ? [](Scopes &) { return list_of({}); } : list(expression(), "]");
        }
        if (take("{")) {
            std::vector<std::pair<Expression, Expression>> pairs;
            while (!take("}")) {
                const Expression key = expression();
                expect(":");
                pairs.push_back({ key, expression() });
                if (!take(",")) {
                    expect("}");
                    break;
                }
            }
            return [pairs](Scopes & s) {
                Dict dict;
                for (const auto & [key, value] : pairs) {
                    dict[text_of(key(s))] = value(s);
                }
                return Value(std::make_shared<Dict>(std::move(dict)));
            };
        }
        if (token.kind == Token::sign || token.kind == Token::end) {
            fail("a value is missing before '" + token.is + "'");
        }
        ++at_;
        if (token.kind == Token::number) {
            return [number = int64_t(std::stoll(token.is))](Scopes &) { return Value(number); };
        }
        if (token.kind == Token::text) {
            return [text = token.is](Scopes &) { return Value(text); };
        }
        if (token.is == "true" || token.is == "True" || token.is == "false" || token.is == "False") {
            return [flag = token.is == "true" || token.is == "True"](Scopes &) { return Value(flag); };
        }
        if (token.is == "none" || token.is == "None") {
            return [](Scopes &) { return Value(None()); };
        }
        if (next().kind == Token::sign && next().is == "(") {
            return [what = token.is, args = optional_arguments()](Scopes & s) { return call_function(what, args, s); };
        }
        return [what = token.is](Scopes & s) { return s.get(what); };
    }

    std::vector<Token> tokens_;  // the last is the end
    size_t             at_    = 0;
    int                depth_ = 0;
};

// ---- tags ----

std::string utf8(uint32_t code) {
    if (code < 0x80) {
        return std::string(1, char(code));
    }
    if (code < 0x800) {
        return { char(0xC0 | code >> 6), char(0x80 | (code & 0x3F)) };
    }
    return { char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F)) };
}

bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// What ends a loop, or one round of it.
struct Break : TemplateError {
    Break() : TemplateError("'break' stands outside of a loop") {}
};
struct Continue : TemplateError {
    Continue() : TemplateError("'continue' stands outside of a loop") {}
};

// Reads a template into nodes.
class TemplateReader {
public:
    explicit TemplateReader(const std::string & text) : text_(replaced(text, "\r\n", "\n")) {
        if (!text_.empty() && text_.back() == '\n') {
            text_.pop_back();
        }
        rest_ = text_;
    }

    Nodes read() {
        std::string end;
        Nodes       nodes = block({}, end);
        return nodes;
    }

private:
    // Up to a statement that begins with one of `ends`, which the reader is then at; without any, to the end.
    Nodes block(const std::vector<std::string> & ends, std::string & end) {
        const Nested nested(depth_);
        Nodes        nodes;
        while (!rest_.empty()) {
            const std::string plain = read_plain();
            nodes.push_back([plain](Scopes &, std::string & out) { out += plain; });
            if (rest_.empty()) {
                break;
            }
            const char kind = rest_[1];
            if (kind == '#') {
                skip_comment();
                continue;
            }
            ExpressionReader tag(read_tag(kind == '%' ? "%}" : "}}"));
            if (kind == '{') {
                nodes.push_back([value = whole(tag)](Scopes & s, std::string & out) { out += to_text(value(s)); });
                continue;
            }
            end = tag.name();
            if (std::find(ends.begin(), ends.end(), end) != ends.end()) {
                tag_ = std::make_unique<ExpressionReader>(tag);
                return nodes;
            }
            nodes.push_back(statement(end, tag));
        }
        if (!ends.empty()) {
            fail("'" + ends.back() + "' is missing");
        }
        return nodes;
    }

    static Expression whole(ExpressionReader & tag) {
        const Expression value = tag.expression();
        if (!tag.at_end()) {
            fail("'" + tag.next().is + "' is not understood");
        }
        return value;
    }

    Node statement(const std::string & word, ExpressionReader & tag) {
        if (word == "if") {
            return conditional(tag);
        }
        if (word == "for") {
            return loop(tag);
        }
        if (word == "set") {
            return assignment(tag);
        }
        if (word == "generation" || word == "endgeneration") {
            return [](Scopes &, std::string &) {};
        }
        if (word == "macro") {
            return macro(tag);
        }
        if (word == "break") {
            return [](Scopes &, std::string &) { throw Break(); };
        }
        if (word == "continue") {
            return [](Scopes &, std::string &) { throw Continue(); };
        }
        return [word](Scopes &, std::string &) { fail("the statement '" + word + "' is not known here"); };
    }

    Node conditional(ExpressionReader & tag) {
        std::vector<std::pair<Expression, Nodes>> branches;
        Expression                                condition = whole(tag);
        for (std::string end; end != "endif";) {
            const Nodes nodes = block({ "elif", "else", "endif" }, end);
            branches.push_back({ condition, nodes });
            condition = end == "elif" ? whole(*tag_) : [](Scopes &) { return Value(true); };
        }
        return [branches](Scopes & s, std::string & out) {
            for (const auto & [holds, nodes] : branches) {
                if (is_true(holds(s))) {
                    write(nodes, s, out);
                    return;
                }
            }
        };
    }

    Node macro(ExpressionReader & tag) {
        const std::string name  = tag.name();
        const auto        macro = std::make_shared<Macro>();
        for (tag.expect("("); !tag.take(")"); tag.take(",")) {
            macro->names.push_back(tag.name());
            macro->defaults.push_back(tag.take("=") ? tag.expression() : [](Scopes &) { return Value(); });
        }
        std::string end;
        macro->nodes = block({ "endmacro" }, end);
        return [name, macro](Scopes & s, std::string &) { s.all.back()[name] = macro; };
    }

    Node loop(ExpressionReader & tag) {
        std::vector<std::string> names = { tag.name() };
        while (tag.take(",")) {
            names.push_back(tag.name());
        }
        tag.expect("in");
        const Expression over = tag.disjunction();
        const Expression only = tag.take("if") ? tag.expression() : [](Scopes &) { return Value(true); };
        if (!tag.at_end()) {
            fail("'" + tag.next().is + "' is not understood");
        }
        std::string end;
        const Nodes body = block({ "else", "endfor" }, end);
        const Nodes none = end == "else" ? block({ "endfor" }, end) : Nodes();
        return [=](Scopes & s, std::string & out) {
            const Value of = over(s);
            if (!of.list() && !of.as<Undefined>()) {
                fail("a loop runs over what is no list");
            }
            const size_t n_scopes = s.all.size();
            s.all.emplace_back();
            List chosen;
            for (const Value & value : of.list() ? *of.list() : List()) {
                bind(names, value, s.all.back());
                if (is_true(only(s))) {
                    chosen.push_back(value);
                }
            }
            for (size_t i = 0; i < chosen.size(); ++i) {
                s.all.back().clear();
                bind(names, chosen[i], s.all.back());
                s.all.back()["loop"] = position(chosen, i);
                try {
                    write(body, s, out);
                } catch (const Continue &) {
                    s.all.resize(n_scopes + 1);
                } catch (const Break &) {
                    break;
                }
            }
            s.all.resize(n_scopes);
            if (chosen.empty()) {
                write(none, s, out);
            }
        };
    }

    static void bind(const std::vector<std::string> & names, const Value & value, Dict & scope) {
        for (size_t i = 0; i < names.size(); ++i) {
            scope[names[i]] = names.size() == 1 ? value : member(value, int64_t(i));
        }
    }

    static Value position(const List & of, size_t i) {
        Dict loop;
        loop["index"]  = int64_t(i + 1);
        loop["index0"] = int64_t(i);
        loop["first"]  = i == 0;
        loop["last"]   = i + 1 == of.size();
        loop["length"] = int64_t(of.size());
        if (i > 0) {
            loop["previtem"] = of[i - 1];
        }
        if (i + 1 < of.size()) {
            loop["nextitem"] = of[i + 1];
        }
        return std::make_shared<Dict>(std::move(loop));
    }

    Node assignment(ExpressionReader & tag) {
        const std::string name = tag.name();
        const std::string part = tag.take(".") ? tag.name() : "";
        if (tag.at_end()) {  // what stands up to endset
            std::string end;
            const Nodes nodes = block({ "endset" }, end);
            return [name, nodes](Scopes & s, std::string &) {
                std::string text;
                write(nodes, s, text);
                s.all.back()[name] = text;
            };
        }
        tag.expect("=");
        const Expression value = whole(tag);
        return [=](Scopes & s, std::string &) {
            if (part.empty()) {
                s.all.back()[name] = value(s);
                return;
            }
            const Value of = s.get(name);
            if (!of.dict()) {
                fail("'" + name + "' is no namespace");
            }
            (**of.as<std::shared_ptr<Dict>>())[part] = value(s);
        };
    }

    // Text up to the next tag.
    std::string read_plain() {
        size_t at = 0;
        do {
            at = rest_.find('{', at);
        } while (at != std::string_view::npos && ++at < rest_.size() && std::string_view("{%#").find(rest_[at]) == std::string_view::npos);
        at = at >= rest_.size() ? rest_.size() : at - 1;
        std::string text(rest_.substr(0, at));
        rest_.remove_prefix(at);
        if (rest_.size() > 2 && rest_[2] == '-') {
            return strip(text, white_space(), false, true);
        }
        if (rest_.size() > 2 && rest_[1] != '{' && rest_[2] != '+') {
            const size_t blank = text.find_last_not_of(" \t") + 1;
            if (blank == 0 ? at_line_start_ : text[blank - 1] == '\n') {
                text.erase(blank);
            }
        }
        return text;
    }

    void skip_comment() {
        const size_t end = rest_.find("#}");
        if (end == std::string_view::npos) {
            fail("'#}' is missing");
        }
        after_tag(end, true);
    }

    // Past the two characters at `end` that close a tag, and the white space that goes with it.
    void after_tag(size_t end, bool takes_newline) {
        const bool strips = end > 0 && rest_[end - 1] == '-';
        const bool keeps  = end > 0 && rest_[end - 1] == '+';
        rest_.remove_prefix(end + 2);
        at_line_start_ = false;
        while (!rest_.empty() && (strips ? std::isspace(static_cast<unsigned char>(rest_[0])) != 0 :
                                           takes_newline && !keeps && !at_line_start_ && rest_[0] == '\n')) {
            at_line_start_ = rest_[0] == '\n';
            rest_.remove_prefix(1);
        }
    }

    std::vector<Token> read_tag(std::string_view end) {
        std::vector<Token> tokens;
        size_t             at    = 2 + (rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+') ? 1 : 0);
        int                depth = 0;  // of braces
        for (;; ) {
            if (at + 1 >= rest_.size()) {
                fail("'" + std::string(end) + "' is missing");
            }
            const char c = rest_[at];
            const std::string_view two = rest_.substr(at, 2);
            if (depth == 0 && (two == end || ((c == '-' || c == '+') && rest_.substr(at + 1, 2) == end))) {
                after_tag(two == end ? at : at + 1, end == "%}");
                tokens.push_back({ Token::end, std::string(end) });
                return tokens;
            }
            if (std::isspace(static_cast<unsigned char>(c)) != 0) {
                ++at;
            } else if (c == '\'' || c == '"') {
                const std::string text = read_literal(at);
                if (!tokens.empty() && tokens.back().kind == Token::text) {
                    tokens.back().is += text;  // as in Python, neighbours are one
                } else {
                    tokens.push_back({ Token::text, text });
                }
            } else if (is_word(c)) {
                size_t to = at;
                while (to < rest_.size() && is_word(rest_[to])) {
                    ++to;
                }
                const bool digits = std::isdigit(static_cast<unsigned char>(c)) != 0;
                tokens.push_back({ digits ? Token::number : Token::name, std::string(rest_.substr(at, to - at)) });
                if (digits && (to - at > 18 || !std::all_of(rest_.begin() + long(at), rest_.begin() + long(to), [](char d) { return std::isdigit(static_cast<unsigned char>(d)) != 0; }))) {
                    fail("'" + tokens.back().is + "' is no number");
                }
                at = to;
            } else {
                const bool pair = two == "==" || two == "!=" || two == "<=" || two == ">=" || two == "//" || two == "**";
                depth += c == '{' ? 1 : c == '}' ? -1 : 0;
                tokens.push_back({ Token::sign, std::string(rest_.substr(at, pair ? 2 : 1)) });
                at += pair ? 2 : 1;
            }
        }
    }

    std::string read_literal(size_t & at) {
        const char  quote = rest_[at++];
        std::string text;
        for (; at < rest_.size() && rest_[at] != quote; ++at) {
            if (rest_[at] != '\\' || at + 1 == rest_.size()) {
                text += rest_[at];
                continue;
            }
            constexpr std::string_view k_names  = "nrt'\"\\";
            constexpr std::string_view k_values = "\n\r\t'\"\\";
            const char                 name     = rest_[++at];
            const size_t               n_digits = name == 'u' ? 4 : name == 'x' ? 2 : 0;
            if (const size_t known = k_names.find(name); known != std::string_view::npos) {
                text += k_values[known];
            } else if (n_digits != 0 && at + n_digits < rest_.size()) {
                text += utf8(uint32_t(std::strtoul(std::string(rest_.substr(at + 1, n_digits)).c_str(), nullptr, 16)));
                at += n_digits;
            } else {
                fail(std::string("'\\") + name + "' is not known here");
            }
        }
        if (at >= rest_.size()) {
            fail("a quotation does not end");
        }
        ++at;
        return text;
    }

    std::string                       text_;
    std::string_view                  rest_;
    bool                              at_line_start_ = true;
    int                               depth_         = 0;
    std::unique_ptr<ExpressionReader> tag_;  // that ended the last block
};

}  // namespace

std::string render_jinja(const std::string & chat_template, const std::vector<Message> & messages,
                         const std::string & bos, const std::string & eos) {
    Scopes scopes;
    Dict & globals = scopes.all[0];
    List   list;
    for (const Message & message : messages) {
        list.push_back(std::make_shared<Dict>(Dict{ { "role", message.role }, { "content", message.content } }));
    }
    globals["messages"]              = list_of(std::move(list));
    globals["bos_token"]             = bos;
    globals["eos_token"]             = eos;
    globals["add_generation_prompt"] = true;
    for (const char * none : { "tools", "tool_choice", "functions", "function_call" }) {
        globals[none] = None();
    }
    globals["strftime_now"]    = true;  // they are defined, which is asked for
    globals["raise_exception"] = true;

    std::string text;
    write(TemplateReader(chat_template).read(), scopes, text);
    return text;
}

}  // namespace app
