#include "jinja_expressions.h"

#include <ctime>

namespace app::jinja {
namespace {

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

}  // namespace

void write(const Nodes & nodes, Scopes & scopes, std::string & out) {
    for (const Node & node : nodes) {
        node(scopes, out);
    }
}

bool ExpressionReader::take(const std::string & what) {
    const bool is_it = (next().kind == Token::sign || next().kind == Token::name) && next().is == what;
    at_ += is_it ? 1 : 0;
    return is_it;
}

void ExpressionReader::expect(const std::string & what) {
    if (!take(what)) {
        fail("'" + what + "' is missing before '" + next().is + "'");
    }
}

std::string ExpressionReader::name() {
    if (next().kind != Token::name) {
        fail("a name is missing before '" + next().is + "'");
    }
    return tokens_[at_++].is;
}

Expression ExpressionReader::expression() {
    const Expression value = disjunction();
    if (!take("if")) {
        return value;
    }
    const Expression condition = disjunction();
    const Expression otherwise = take("else") ? expression() : [](Scopes &) { return Value(); };
    return [=](Scopes & s) { return is_true(condition(s)) ? value(s) : otherwise(s); };
}

Expression ExpressionReader::disjunction() {
    Expression left = conjunction();
    while (take("or")) {
        left = [left, right = conjunction()](Scopes & s) {
            const Value value = left(s);
            return is_true(value) ? value : right(s);
        };
    }
    return left;
}

Expression ExpressionReader::conjunction() {
    Expression left = negation();
    while (take("and")) {
        left = [left, right = negation()](Scopes & s) {
            const Value value = left(s);
            return is_true(value) ? right(s) : value;
        };
    }
    return left;
}

Expression ExpressionReader::negation() {
    const Nested nested(depth_);
    if (take("not")) {
        return [of = negation()](Scopes & s) { return Value(!is_true(of(s))); };
    }
    return comparison();
}

Expression ExpressionReader::comparison() {
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

Expression ExpressionReader::operation(const std::vector<std::string> & signs, int depth) {
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

Expression ExpressionReader::unary() {
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

Expression ExpressionReader::attribute(const Expression & of) {
    const std::string what = name();
    if (next().is == "(" && next().kind == Token::sign) {
        return [of, what, args = optional_arguments()](Scopes & s) {
            return call_method(of(s), what, args.values(s));
        };
    }
    return [of, what](Scopes & s) { return member(of(s), what); };
}

Expression ExpressionReader::subscript(const Expression & of) {
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

CallArguments ExpressionReader::optional_arguments() {
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

Expression ExpressionReader::list(const Expression & first, const std::string & end) {
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

Expression ExpressionReader::primary() {
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

}  // namespace app::jinja
