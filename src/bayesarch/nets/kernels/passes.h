/* All passes for one type. Part of rows.c. */

#include "block.h"
#include "rows.h"
#include "depthwise.h"
#include "images.h"

#undef ROWS
#undef BLOCKS
#undef CHUNKS
#undef T
#undef ROW
#undef V
#undef PLACES
#undef A
#undef SUFFIX
#undef WIDE
#undef NARROW
