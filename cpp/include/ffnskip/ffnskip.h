// ffnskip: input-adaptive feed-forward skipping (FFN-SkipLLM, arXiv:2404.03865) for llama.cpp. The only header to include.
#pragma once

#include "ffnskip/blocks.h"
#include "ffnskip/choices.h"
#include "ffnskip/config.h"
#include "ffnskip/controller.h"
#include "ffnskip/devices.h"
#include "ffnskip/errors.h"
#include "ffnskip/options.h"
#include "ffnskip/profile.h"
#include "ffnskip/rows.h"
#include "ffnskip/scoring.h"
#include "ffnskip/session.h"
#include "ffnskip/stats.h"
#include "ffnskip/version.h"
