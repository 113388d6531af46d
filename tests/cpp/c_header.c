/* The C header compiles as C99, and errors arrive as statuses: what fails here broke the C interface. */
#include <ilat/ilat.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect(int holds, const char* what) {
  if (!holds) {
    fprintf(stderr, "failed: %s\n", what);
    ++failures;
  }
}

int main(void) {
  ilat_editor* editor = NULL;
  char* message = NULL;
  expect(strlen(ilat_version()) > 0, "a version");
  expect(ilat_open("no-such-folder", NULL, &editor, &message) == ILAT_BUNDLE_ERROR, "a missing bundle is a status");
  expect(editor == NULL, "no editor");
  expect(message && strcmp(message, "no-such-folder: no such bundle, expected a folder with manifest.json") == 0,
         "the message");
  ilat_free(message);
  expect(ilat_open(NULL, NULL, &editor, &message) == ILAT_INPUT_ERROR, "NULL is refused");
  ilat_free(message);
  expect(ilat_open(NULL, NULL, &editor, NULL) == ILAT_INPUT_ERROR, "without a message too");
  expect(ilat_edit(NULL, NULL, NULL, NULL, NULL) == ILAT_INPUT_ERROR, "no editor is refused");
  ilat_close(NULL);
  ilat_close_session(NULL);
  ilat_free_result(NULL);
  ilat_free(NULL);
  return failures;
}
