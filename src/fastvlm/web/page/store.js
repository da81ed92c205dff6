// Keeps values in this browser (IndexedDB: images are too large for localStorage). Without it, nothing is kept.

const NAME = "fastvlm";
const TABLE = "values";

/** @type {?Promise<?IDBDatabase>} */
let opening = null;

function open() {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
      request.onsuccess = () => resolve(request.result);
      request.onerror = request.onblocked = () => resolve(null);
    } catch {
      resolve(null); // some browsers forbid it in private windows
    }
  });
  return opening;
}

/** @param {string} key @returns {Promise<any>} undefined if there is none */
export async function load(key) {
  const database = await open();
  if (!database) return undefined;
  return new Promise((resolve) => {
    const request = database.transaction(TABLE).objectStore(TABLE).get(key);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(undefined);
  });
}

/** @param {string} key @param {any} value @returns {Promise<boolean>} false if it could not be kept */
export async function save(key, value) {
  const database = await open();
  if (!database) return false;
  return new Promise((resolve) => {
    const transaction = database.transaction(TABLE, "readwrite");
    transaction.objectStore(TABLE).put(value, key);
    transaction.oncomplete = () => resolve(true);
    transaction.onerror = transaction.onabort = () => resolve(false); // a full disk, a quota
  });
}
