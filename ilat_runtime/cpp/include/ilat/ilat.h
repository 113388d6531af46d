/* ilat in C, for other languages: ilat/editor.hpp with opaque handles. C99.
 *
 * Functions that can fail return a status and, where `message` is not NULL, set *message to a line that names the file,
 * key or argument and what was expected (NULL on success); free it with ilat_free. No exception leaves a function.
 * An editor may be used from several threads at once, a session from one. Handles are freed in any order. */
#ifndef ILAT_ILAT_H
#define ILAT_ILAT_H

#include <stddef.h>
#include <stdint.h>

#ifndef ILAT_API
#define ILAT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ilat_editor ilat_editor;
typedef struct ilat_session ilat_session;
typedef struct ilat_result ilat_result;

typedef enum ilat_status {
  ILAT_OK = 0,
  ILAT_INPUT_ERROR = 1,   /* an image, mask, pose or option is not what the call takes */
  ILAT_BUNDLE_ERROR = 2,  /* the bundle is incomplete, changed or not understood */
  ILAT_BACKEND_ERROR = 3, /* the backend cannot run here */
  ILAT_CANCELLED = 4,     /* the progress callback asked to stop */
  ILAT_FAILED = 5         /* anything else, such as too little memory */
} ilat_status;

/* uint8 of the caller: HWC RGB for an image, HW for a mask or sketch. stride: bytes from a row to the next, 0 for none
 * between them. Where `data` is NULL there is none. */
typedef struct ilat_pixels {
  const uint8_t* data;
  int width, height;
  ptrdiff_t stride;
} ilat_pixels;

/* 13 landmarks in the order of docs/bundle.md, each x and y in pixels of the image and visibility 0 or 1. */
typedef struct ilat_pose {
  float points[13][3];
} ilat_pose;

typedef struct ilat_crop {
  int x, y, side;
} ilat_crop;

/* Called with (tokens generated, tokens to generate, user); returning 0 cancels. */
typedef int (*ilat_progress)(int64_t, int64_t, void*);

/* How an editor runs; all zero is the default. */
typedef struct ilat_options {
  const char* backend; /* NULL: "auto" */
  int threads;         /* CPU threads; 0: the backend chooses */
  const char* library; /* file of ONNX Runtime; NULL: $ILAT_ONNXRUNTIME, else what the system finds by its name */
} ilat_options;

/* One edit; all zero is the default. Pointers may be NULL. What ilat/editor.hpp says "not in a session" is refused
 * there. */
typedef struct ilat_edit_options {
  const ilat_pose* pose;
  const ilat_pose* reference_pose;
  ilat_pixels mask;
  ilat_pixels sketch;
  uint64_t seed;
  double temperature; /* 0: 1 */
  int64_t top_k;      /* 0: 1, the likeliest */
  const double* dilation;
  const double* margin;
  const ilat_crop* crop;
  const int* blend;
  ilat_progress progress;
  void* user;
} ilat_edit_options;

/* Read with ilat_view; everything belongs to the result. */
typedef struct ilat_view_of_result {
  ilat_pixels image;  /* RGB */
  ilat_pixels mask;   /* 1 where pixels were edited */
  ilat_pixels sketch; /* what the edit followed, for bundles of kind "sketch" */
  const int64_t* tokens;
  const float* log_probability;
  size_t token_count;
  const uint8_t* token_mask; /* grid rows by columns */
  int grid;
  int64_t transformer_calls;
  ilat_crop crop;
  double seconds;      /* in all */
  const char* backend; /* with its version and device */
  const char* notice;  /* what the caller should know; "" for nothing */
} ilat_view_of_result;

ILAT_API const char* ilat_version(void);

ILAT_API ilat_status ilat_open(const char* bundle, const ilat_options* options, ilat_editor** editor, char** message);
ILAT_API ilat_status ilat_edit(const ilat_editor* editor, const ilat_pixels* image, const ilat_edit_options* edit,
                               ilat_result** result, char** message);

/* A reference image, encoded and prefilled once. Of `options`, its pose is `reference_pose`; crop and sketch count too.
 */
ILAT_API ilat_status ilat_reference(const ilat_editor* editor, const ilat_pixels* image,
                                    const ilat_edit_options* options, ilat_session** session, char** message);
ILAT_API ilat_status ilat_session_edit(ilat_session* session, const ilat_edit_options* edit, ilat_result** result,
                                       char** message);

/* The square in which an edit with these poses, and mask and margin of `options`, happens. */
ILAT_API ilat_status ilat_crop_for(const ilat_editor* editor, const ilat_pixels* image, const ilat_pose* poses,
                                   size_t count, const ilat_edit_options* options, ilat_crop* crop, char** message);

ILAT_API ilat_view_of_result ilat_view(const ilat_result* result);

/* NULL is allowed. */
ILAT_API void ilat_close(ilat_editor* editor);
ILAT_API void ilat_close_session(ilat_session* session);
ILAT_API void ilat_free_result(ilat_result* result);
ILAT_API void ilat_free(char* message);

#ifdef __cplusplus
}
#endif

#endif
