#include "operations.h"
#include "parser.h"

#include "numbers.h"

#include <algorithm>

namespace app::jinja {
namespace {

// Operators, those that bind least first.
const std::vector<std::vector<std::string>> k_levels = {
    { "or" },     { "and" }, { "==", "!=", "<=", ">=", "<", ">", "in", "not in" },
    { "+", "-" }, { "~" },   { "*", "//", "/", "%" },
};
constexpr size_t k_comparison = 2;

const Expression k_nothing = [](Scopes &) { return Value(); };

int64_t number(const std::string & text) {
    const std::optional<int64_t> value = ffnskip::parse_number<int64_t>(text);
    if (!value) {
        fail("'" + text + "' is no number");
    }
    return *value;
}

template <typename T> Expression constant(T value) {
    return [value = Value(std::move(value))](Scopes &) { return value; };
}

}  // namespace

bool Parser::take(const std::string & what) {
    const bool is_it = (next().kind == Token::sign || next().kind == Token::name) && next().is == what;
    at_ += is_it ? 1 : 0;
    return is_it;
}

void Parser::expect(const std::string & what) {
    if (!take(what)) {
        fail("'" + what + "' is missing before '" + next().is + "'");
    }
}

std::string Parser::name() {
    if (next().kind != Token::name) {
        fail("a name is missing before '" + next().is + "'");
    }
    return tokens_[at_++].is;
}

void Parser::expect_end() {
    if (!at_end()) {
        fail("'" + next().is + "' is not understood");
    }
    ++at_;
}

void Parser::skip_tag() {
    while (tokens_[at_++].kind != Token::end) {
    }
}

Expression Parser::whole() {
    try {
        const Expression value = expression();
        expect_end();
        return value;
    } catch (const TemplateError & error) {
        skip_tag();
        return [error](Scopes &) -> Value { throw error; };
    }
}

Expression Parser::expression() {
    const Expression value = binary(0);
    if (!take("if")) {
        return value;
    }
    const Expression condition = binary(0);
    const Expression otherwise = take("else") ? expression() : k_nothing;
    return [=](Scopes & s) { return is_true(condition(s)) ? value(s) : otherwise(s); };
}

Expression Parser::binary(size_t level) {
    if (level == k_levels.size()) {
        return unary();
    }
    if (level == k_comparison && take("not")) {
        const Nested nested(depth_);
        return [of = binary(level)](Scopes & s) { return Value(!is_true(of(s))); };
    }
    Expression left = binary(level + 1);
    for (;;) {
        const auto & signs = k_levels[level];
        const auto sign = std::find_if(signs.begin(), signs.end(), [&](const std::string & one) { return take(one); });
        if (sign == signs.end()) {
            return left;
        }
        left = [sign = *sign, left, right = binary(level + 1)](Scopes & s) {
            const Value a = left(s);
            if (sign == "or" || sign == "and") {
                return is_true(a) == (sign == "or") ? a : right(s);
            }
            return calculate(sign, a, right(s));
        };
        if (level == k_comparison) {
            return left;
        }
    }
}

Expression Parser::unary() {
    const Nested nested(depth_);
    if (take("-")) {
        return [of = unary()](Scopes & s) { return Value(-of(s).integer()); };
    }
    Expression value = primary();
    for (;;) {
        if (take(".")) {
            value = attribute(value);
        } else if (take("[")) {
            value = subscript(value);
        } else if (take("|")) {
            const std::string what = name();
            value                  = [of = value, what, args = optional_arguments()](Scopes & s) {
                return operate(what, of(s), args(s));
            };
        } else if (take("is")) {
            value = tested(value, true);
        } else if (take("is not")) {
            value = tested(value, false);
        } else {
            return value;
        }
    }
}

Expression Parser::attribute(const Expression & of) {
    const std::string what = name();
    if (next().kind != Token::sign || next().is != "(") {
        return [of, what](Scopes & s) { return member(of(s), what); };
    }
    return [of, what, args = optional_arguments()](Scopes & s) {
        const Value self = of(s);
        if (self.is_a<Undefined>() || self.is_a<None>()) {
            fail("'" + what + "' is asked of nothing");
        }
        return operate(what, self, args(s));
    };
}

Expression Parser::subscript(const Expression & of) {
    std::vector<Expression> bounds = { k_nothing };
    while (!take("]")) {
        if (take(":")) {
            bounds.push_back(k_nothing);
        } else {
            bounds.back() = expression();
        }
    }
    if (bounds.size() == 1) {
        return [of, key = bounds[0]](Scopes & s) { return member(of(s), key(s)); };
    }
    bounds.resize(3, k_nothing);
    return [of, bounds](Scopes & s) { return slice(of(s), bounds[0](s), bounds[1](s), bounds[2](s)); };
}

Expression Parser::tested(const Expression & of, bool wanted) {
    const std::string what     = name();
    const bool        with_one = next().kind == Token::text || next().kind == Token::number;  // without brackets
    const Expression  one      = with_one ? primary() : nullptr;
    return [=, args = optional_arguments()](Scopes & s) {
        return Value(test(what, of(s), one ? List{ one(s) } : args(s).list) == wanted);
    };
}

std::function<Call(Scopes &)> Parser::optional_arguments() {
    std::vector<std::pair<std::string, Expression>> all;  // without a name: in order
    for (bool more = take("("); more && !take(")");) {
        const bool is_named =
            next().kind == Token::name && tokens_[at_ + 1].kind == Token::sign && tokens_[at_ + 1].is == "=";
        const std::string key = is_named ? name() : "";
        at_ += is_named ? 1 : 0;
        all.push_back({ key, expression() });
        more = take(",");
        if (!more) {
            expect(")");
        }
    }
    return [all](Scopes & s) {
        Call call;
        for (const auto & [key, value] : all) {
            key.empty() ? call.list.push_back(value(s)) : void(call.named[key] = value(s));
        }
        return call;
    };
}

Expression Parser::list(const Expression & first, const std::string & end) {
    std::vector<Expression> all = { first };
    for (take(","); !take(end); all.push_back(expression()), take(",")) {
    }
    return [all](Scopes & s) {
        List list;
        for (const Expression & one : all) {
            list.push_back(one(s));
        }
        return Value(list);
    };
}

Expression Parser::dict() {
    std::vector<std::pair<Expression, Expression>> pairs;
    for (; !take("}"); take(",")) {
        const Expression key = expression();
        expect(":");
        pairs.push_back({ key, expression() });
    }
    return [pairs](Scopes & s) {
        Dict dict;
        for (const auto & [key, value] : pairs) {
            dict[key(s).text()] = value(s);
        }
        return Value(dict);
    };
}

Expression Parser::primary() {
    if (take("(")) {
        const Expression value = expression();
        return take(")") ? value : list(value, ")");
    }
    if (take("[")) {
        return take("]") ? constant(List()) : list(expression(), "]");
    }
    if (take("{")) {
        return dict();
    }
    const Token token = next();
    if (token.kind != Token::number && token.kind != Token::text && token.kind != Token::name) {
        fail("a value is missing before '" + token.is + "'");
    }
    ++at_;
    if (token.kind != Token::name) {
        return token.kind == Token::text ? constant(token.is) : constant(number(token.is));
    }
    if (token.is == "none" || token.is == "None") {
        return constant(None());
    }
    const bool yes = token.is == "true" || token.is == "True";
    if (yes || token.is == "false" || token.is == "False") {
        return constant(yes);
    }
    if (next().kind != Token::sign || next().is != "(") {
        return [what = token.is](Scopes & s) { return s.get(what); };
    }
    return [what = token.is, args = optional_arguments()](Scopes & s) {
        const Value of = s.get(what);
        if (!of.is_a<Function>()) {
            fail("'" + what + "' is not known here");
        }
        return (*of.as<Function>())(s, args(s));
    };
}

}  // namespace app::jinja
